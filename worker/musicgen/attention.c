/* Attention of one query per row over that row's own length, for CPUs.
 *
 * query          KV    [n_rows, n_heads, HEAD], rows `stride` apart
 * key, value     KV    like query, or NULL                to be written into each row's last column first
 * keys, values   KV    [n_rows, n_heads, capacity, HEAD]
 * lengths        int64 [n_rows]                           columns to attend to, at least 1
 * scores         float [n_rows * n_heads, capacity]       scratch
 * output         float [n_rows, n_heads, HEAD]
 *
 * KV is float, or bfloat16 as uint16. Compiled at start by kernels.py with -DHEAD=... -DKV_BF16=0|1.
 * Each cached value is read once, in order: memory bandwidth is the limit.
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

static void attend_one(const kv_t *query, const kv_t *keys, const kv_t *values, int64_t length, float scale,
                       float *scores, float *output) {
    float scaled[HEAD], best = -INFINITY, total = 0, sum[HEAD] = {0};
    for (int d = 0; d < HEAD; d++) scaled[d] = widen(query[d]) * scale;
    for (int64_t column = 0; column < length; column++) {
        float score = 0;
        for (int d = 0; d < HEAD; d++) score += scaled[d] * widen(keys[column * HEAD + d]);
        scores[column] = score;
        best = score > best ? score : best;
    }
    for (int64_t column = 0; column < length; column++) {
        scores[column] = expf(scores[column] - best);
        total += scores[column];
    }
    for (int64_t column = 0; column < length; column++)
        for (int d = 0; d < HEAD; d++) sum[d] += scores[column] * widen(values[column * HEAD + d]);
    for (int d = 0; d < HEAD; d++) output[d] = sum[d] / total;
}

void attend(const kv_t *query, const kv_t *key, const kv_t *value, int64_t stride, kv_t *keys, kv_t *values,
            const int64_t *lengths, int64_t n_rows, int64_t n_heads, int64_t capacity, float scale,
            float *scores, float *output) {
#pragma omp parallel for schedule(dynamic)
    for (int64_t i = 0; i < n_rows * n_heads; i++) {
        int64_t row = i / n_heads, from = row * stride + i % n_heads * HEAD, cached = i * capacity * HEAD;
        if (key) {
            int64_t last = cached + (lengths[row] - 1) * HEAD;
            memcpy(keys + last, key + from, HEAD * sizeof(kv_t));
            memcpy(values + last, value + from, HEAD * sizeof(kv_t));
        }
        attend_one(query + from, keys + cached, values + cached, lengths[row], scale, scores + i * capacity,
                   output + i * HEAD);
    }
}
