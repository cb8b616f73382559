/* Attention of one query per row over that row's own length (attention.h).
 *
 * query          KV    [n_rows, n_heads, HEAD], rows `stride` apart
 * key, value     KV    like query, or NULL                to be written into each row's last column first
 * keys, values   KV    [n_rows, n_heads, capacity, HEAD]
 * lengths        int64 [n_rows]                           columns to attend to, at least 1
 * scores         float [n_rows * n_heads, capacity]       scratch
 * output         float [n_rows, n_heads, HEAD]
 *
 * Compiled at start by kernels.py with -DHEAD=... -DKV_BF16=0|1.
 */
#include "attention.h"

void attend(const kv_t *query, const kv_t *key, const kv_t *value, int64_t stride, kv_t *keys, kv_t *values,
            const int64_t *lengths, int64_t n_rows, int64_t n_heads, int64_t capacity, float *scores,
            float *output) {
#pragma omp parallel for schedule(dynamic)
    for (int64_t i = 0; i < n_rows * n_heads; i++) {
        int64_t row = i / n_heads, from = row * stride + i % n_heads * HEAD, cached = i * capacity * HEAD;
        float wide[HEAD];
        if (key) {
            int64_t last = cached + (lengths[row] - 1) * HEAD;
            memcpy(keys + last, key + from, HEAD * sizeof(kv_t));
            memcpy(values + last, value + from, HEAD * sizeof(kv_t));
        }
        for (int d = 0; d < HEAD; d++) wide[d] = KV_FLOAT(query[from + d]);
        attend_one(wide, keys + cached, values + cached, lengths[row], scores + i * capacity, output + i * HEAD);
    }
}
