/* Attention of one query over the first `length` columns of a head's cached keys and values, for CPUs.
 *
 * query float [HEAD], keys and values KV [length, HEAD], scores float [length] (scratch) -> output float [HEAD]
 *
 * KV is float, or bfloat16 as uint16; -DHEAD=... -DKV_BF16=0|1. Accumulates in float.
 * Each cached value is read once, in order: memory bandwidth is the limit.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

static inline float widen(uint16_t x) {
    uint32_t bits = (uint32_t)x << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* To the nearest bfloat16, ties to even; NaN stays NaN. */
static inline uint16_t narrow(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return (bits & 0x7fffffff) > 0x7f800000 ? bits >> 16 | 0x40 : rounded;
}

#if KV_BF16
typedef uint16_t kv_t;
#define KV_FLOAT(x) widen(x)
#define TO_KV(x) narrow(x)
#else
typedef float kv_t;
#define KV_FLOAT(x) (x)
#define TO_KV(x) (x)
#endif

static inline void attend_one(const float *query, const kv_t *keys, const kv_t *values, int64_t length,
                              float *scores, float *output) {
    float scaled[HEAD], best = -INFINITY, total = 0, sum[HEAD] = {0}, scale = 1 / sqrtf(HEAD);
    for (int d = 0; d < HEAD; d++) scaled[d] = query[d] * scale;
    for (int64_t column = 0; column < length; column++) {
        float score = 0;
        for (int d = 0; d < HEAD; d++) score += scaled[d] * KV_FLOAT(keys[column * HEAD + d]);
        scores[column] = score;
        best = score > best ? score : best;
    }
    for (int64_t column = 0; column < length; column++) {
        scores[column] = expf(scores[column] - best);
        total += scores[column];
    }
    for (int64_t column = 0; column < length; column++)
        for (int d = 0; d < HEAD; d++) sum[d] += scores[column] * KV_FLOAT(values[column * HEAD + d]);
    for (int d = 0; d < HEAD; d++) output[d] = sum[d] / total;
}
