/* Grouped-query attention (Ainslie et al. 2023) of some new positions, for CPUs: rotate their queries and
 * keys, keep keys and values, and attend to all positions up to each one.
 *
 * qkv          KV    [n_new, (GROUP + 1 + 1) * n_kv, HEAD]  queries, then keys, then values; head h reads h / GROUP
 * rotation     float [positions, HEAD]                      cosine and sine of each pair of a head
 * row          int64 [n_new]                                of the cache
 * position     int64 [n_new]                                in the cache; ascending within a row
 * keys, values KV    [rows, n_kv, capacity, HEAD]
 * scores       float [n_threads, GROUP, n_scores]           scratch; n_scores is at least capacity
 * output       float [n_new, GROUP * n_kv, HEAD]
 *
 * KV is float, or bfloat16 as uint16; -DHEAD=... -DGROUP=... -DKV_BF16=0|1. Accumulates in float.
 * A position's output depends on its own row only, not on how many positions are computed together.
 */
#include <omp.h>

#include "attention.h"

static void rotate(const kv_t *x, const float *rotation, float *y) {
    for (int d = 0; d < HEAD; d += 2) {
        float even = KV_FLOAT(x[d]), odd = KV_FLOAT(x[d + 1]);
        y[d] = even * rotation[d] - odd * rotation[d + 1];
        y[d + 1] = odd * rotation[d] + even * rotation[d + 1];
    }
}

/* As attend_one, for the queries of a group: each cached value is read once for all of them. */
static void attend_group(float query[GROUP][HEAD], const kv_t *keys, const kv_t *values, int64_t length,
                         float *scores, int64_t n_scores, float *output) {
    float best[GROUP], total[GROUP] = {0}, sum[GROUP][HEAD] = {{0}}, scale = 1 / sqrtf(HEAD);
    for (int g = 0; g < GROUP; g++) {
        best[g] = -INFINITY;
        for (int d = 0; d < HEAD; d++) query[g][d] *= scale;
    }
    for (int64_t column = 0; column < length; column++)
        for (int g = 0; g < GROUP; g++) {
            float score = 0;
            for (int d = 0; d < HEAD; d++) score += query[g][d] * KV_FLOAT(keys[column * HEAD + d]);
            scores[g * n_scores + column] = score;
            best[g] = score > best[g] ? score : best[g];
        }
    for (int g = 0; g < GROUP; g++)
        for (int64_t column = 0; column < length; column++) {
            float weight = expf(scores[g * n_scores + column] - best[g]);
            scores[g * n_scores + column] = weight;
            total[g] += weight;
        }
    for (int64_t column = 0; column < length; column++)
        for (int g = 0; g < GROUP; g++)
            for (int d = 0; d < HEAD; d++)
                sum[g][d] += scores[g * n_scores + column] * KV_FLOAT(values[column * HEAD + d]);
    for (int g = 0; g < GROUP; g++)
        for (int d = 0; d < HEAD; d++) output[g * HEAD + d] = sum[g][d] / total[g];
}

void attend(const kv_t *qkv, const float *rotation, const int64_t *row, const int64_t *position, kv_t *keys,
            kv_t *values, int64_t n_new, int64_t n_kv, int64_t capacity, int64_t n_scores, float *scores,
            float *output, int64_t n_threads) {
    int64_t width = (GROUP + 2) * n_kv * HEAD;
#pragma omp parallel num_threads(n_threads)
    {
#pragma omp for schedule(static)
        for (int64_t i = 0; i < n_new * n_kv; i++) {
            int64_t new = i / n_kv, head = i % n_kv;
            const kv_t *key = qkv + new * width + (GROUP * n_kv + head) * HEAD, *value = key + n_kv * HEAD;
            int64_t at = ((row[new] * n_kv + head) * capacity + position[new]) * HEAD;
            float rotated[HEAD];
            rotate(key, rotation + position[new] * HEAD, rotated);
            for (int d = 0; d < HEAD; d++) keys[at + d] = TO_KV(rotated[d]);
            memcpy(values + at, value, HEAD * sizeof(kv_t));
        }
        /* Here all threads have met: a position may read one that was kept just now. */
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < n_new * n_kv; i++) {
            int64_t new = i / n_kv, head = i % n_kv, first = (row[new] * n_kv + head) * capacity * HEAD;
            float query[GROUP][HEAD];
            for (int g = 0; g < GROUP; g++)
                rotate(qkv + new * width + (head * GROUP + g) * HEAD, rotation + position[new] * HEAD, query[g]);
            attend_group(query, keys + first, values + first, position[new] + 1,
                         scores + omp_get_thread_num() * GROUP * n_scores, n_scores,
                         output + (new * n_kv + head) * GROUP * HEAD);
        }
    }
}
