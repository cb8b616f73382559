/* Attention of one query per row over that row's own length, for CPUs.
 *
 * query, output  float [n_rows, n_heads, HEAD]           (query already scaled)
 * keys, values   KV    [n_rows, n_heads, capacity, HEAD]  float, or bfloat16 as uint16
 * lengths        int64 [n_rows]                           columns to look at, at least 1
 * scores         float [n_rows * n_heads, capacity]       scratch
 *
 * Compiled at start by kernels.py with -DHEAD=... -DKV_BF16=0|1. Each cached value is read once,
 * in order: it is the memory's bandwidth that limits it.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#if KV_BF16
typedef uint16_t kv_t;
static inline float widen(kv_t x) {
    uint32_t bits = (uint32_t)x << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
#else
typedef float kv_t;
static inline float widen(kv_t x) { return x; }
#endif

static void attend_one(const float *query, const kv_t *keys, const kv_t *values, int64_t length,
                       float *scores, float *output) {
    float best = -INFINITY;
    for (int64_t column = 0; column < length; column++) {
        float score = 0;
        for (int d = 0; d < HEAD; d++) score += query[d] * widen(keys[column * HEAD + d]);
        scores[column] = score;
        best = score > best ? score : best;
    }
    float total = 0;
    for (int64_t column = 0; column < length; column++) {
        scores[column] = expf(scores[column] - best);
        total += scores[column];
    }
    float sum[HEAD] = {0};
    for (int64_t column = 0; column < length; column++)
        for (int d = 0; d < HEAD; d++) sum[d] += scores[column] * widen(values[column * HEAD + d]);
    for (int d = 0; d < HEAD; d++) output[d] = sum[d] / total;
}

void attend(const float *query, const kv_t *keys, const kv_t *values, const int64_t *lengths,
            int64_t n_rows, int64_t n_heads, int64_t capacity, float *scores, float *output) {
#pragma omp parallel for schedule(dynamic)
    for (int64_t i = 0; i < n_rows * n_heads; i++)
        attend_one(query + i * HEAD, keys + i * capacity * HEAD, values + i * capacity * HEAD,
                   lengths[i / n_heads], scores + i * capacity, output + i * HEAD);
}
