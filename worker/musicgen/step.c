/* All layers of a decoding step in one parallel region: one column of each slot (model.py), on CPUs with AVX2.
 *
 * Of 2n rows the first n are the conditional halves of n slots, the others their unconditional halves. Layer 0
 * attends once for both, so its cache has one row per slot; the other caches have two, 2i and 2i + 1.
 * Between two barriers every thread normalises all rows for itself: that costs less than one barrier more.
 * A row's result does not depend on the other rows, their number or the threads.
 *
 * x        float [2n, hidden]       in: the columns' embeddings in the first n rows. Changed.
 * logits   float [2n, n_logits]
 * Compiled at start by kernels.py with -DHEAD=... -DKV_BF16=0|1.
 */
#include <omp.h>

#include "attention.h"
#include "linear.h"

struct norm {
    const float *weight, *bias; /* [hidden] */
};

/* As in cpu_step.py. Weights are panels. */
struct layer {
    struct norm norm, text_norm, mlp_norm;
    const float *qkv, *out, *text_query, *text_out, *up, *down;
    kv_t *keys, *values;                 /* [rows, n_heads, capacity, HEAD] */
    const kv_t *text_keys, *text_values; /* [n, n_heads, n_text, HEAD] */
};

struct model {
    int64_t n_layers, n_heads, ffn, n_logits, capacity, n_text;
    struct norm norm;
    const float *heads;
};

/* Buffers that are overwritten. */
struct scratch {
    float *normed;   /* [n_threads, 2n, hidden] */
    float *attended; /* [2n, hidden] */
    float *up;       /* [2n, ffn] */
    float *products;  /* [2n, 3 * hidden] */
    float *scores;    /* [n_threads, the longer of capacity and n_text] */
};

/* -> this thread's normed rows of x. */
static const float *normalise(const float *x, struct norm norm, int64_t n_rows, int64_t hidden, float eps,
                               float *normed) {
    for (int64_t row = 0; row < n_rows; row++, x += hidden) {
        float mean = 0, variance = 0;
        for (int64_t i = 0; i < hidden; i++) mean += x[i];
        mean /= hidden;
        for (int64_t i = 0; i < hidden; i++) variance += (x[i] - mean) * (x[i] - mean);
        float scale = 1 / sqrtf(variance / hidden + eps);
        for (int64_t i = 0; i < hidden; i++)
            normed[row * hidden + i] = (x[i] - mean) * scale * norm.weight[i] + norm.bias[i];
    }
    return normed;
}

/* linear.h's multiply_panel for all outputs. Ends with a barrier. */
static inline void linear(const float *x, const float *panels, float *y, int64_t n_rows, int64_t n_in, int64_t n_out,
                          enum epilogue epilogue) {
#pragma omp for schedule(dynamic, 2)
    for (int64_t first = 0; first < n_out; first += PANEL)
        multiply_panel(x, panels, y, n_rows, n_in, n_out, first, epilogue);
}

void step(const struct model *model, const struct layer *layers, const struct scratch *scratch, float *x,
          float *logits, const int64_t *columns, const int64_t *text_lengths, int64_t n, float eps) {
    int64_t n_heads = model->n_heads, hidden = n_heads * HEAD, capacity = model->capacity, n_text = model->n_text;
    int64_t n_scores = capacity > n_text ? capacity : n_text;
#pragma omp parallel
    {
        float *normed = scratch->normed + omp_get_thread_num() * 2 * n * hidden;
        float *scores = scratch->scores + omp_get_thread_num() * n_scores;
        for (int64_t l = 0; l < model->n_layers; l++) {
            const struct layer *layer = layers + l;
            int64_t n_rows = l ? 2 * n : n;
            linear(normalise(x, layer->norm, n_rows, hidden, eps, normed), layer->qkv, scratch->products, n_rows,
                   hidden, 3 * hidden, STORE);
#pragma omp for schedule(dynamic, 2)
            for (int64_t i = 0; i < n_rows * n_heads; i++) {
                int64_t row = i / n_heads, head = i % n_heads, column = columns[row % n];
                int64_t of = l ? (row < n ? 2 * row : 2 * (row - n) + 1) : row;
                const float *query = scratch->products + row * 3 * hidden + head * HEAD;
                kv_t *keys = layer->keys + (of * n_heads + head) * capacity * HEAD;
                kv_t *values = layer->values + (of * n_heads + head) * capacity * HEAD;
                for (int d = 0; d < HEAD; d++) {
                    keys[column * HEAD + d] = TO_KV(query[hidden + d]);
                    values[column * HEAD + d] = TO_KV(query[2 * hidden + d]);
                }
                attend_one(query, keys, values, column + 1, scores, scratch->attended + row * hidden + head * HEAD);
            }
            linear(scratch->attended, layer->out, x, n_rows, hidden, hidden, ADD);
            if (!l) {
#pragma omp single nowait /* the next barrier is before the copy is read */
                memcpy(x + n * hidden, x, n * hidden * sizeof(float));
            }
            linear(normalise(x, layer->text_norm, n, hidden, eps, normed), layer->text_query, scratch->products, n,
                   hidden, hidden, STORE);
#pragma omp for schedule(dynamic, 2)
            for (int64_t i = 0; i < n * n_heads; i++) {
                int64_t at = i * n_text * HEAD, to = i * HEAD;
                attend_one(scratch->products + to, layer->text_keys + at, layer->text_values + at,
                            text_lengths[i / n_heads], scores, scratch->attended + to);
            }
            linear(scratch->attended, layer->text_out, x, n, hidden, hidden, ADD);
            linear(normalise(x, layer->mlp_norm, 2 * n, hidden, eps, normed), layer->up, scratch->up, 2 * n, hidden,
                   model->ffn, GELU);
            linear(scratch->up, layer->down, x, 2 * n, model->ffn, hidden, ADD);
        }
        linear(normalise(x, model->norm, 2 * n, hidden, eps, normed), model->heads, logits, 2 * n, hidden,
               model->n_logits, STORE);
    }
}
