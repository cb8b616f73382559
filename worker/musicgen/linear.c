/* y = x @ weight.T in float32 for the few rows of a decoding step, on CPUs with AVX2.
 *
 * x       float [n_rows, n_in]
 * panels  float [ceil(n_out / PANEL), n_in, PANEL]   the weight, PANEL outputs side by side, padded with zeros
 * y       float [n_rows, n_out]
 *
 * Each weight is read from memory once per call and used for all rows while it is cached: a block of
 * DEPTH inputs of a panel stays in the L1 cache, the sums of TILE rows in registers. Memory latency
 * is the limit, so each tile prefetches its share of the next block.
 * An output is summed in the same order whatever the other rows, their number and the threads.
 * Compiled at start by kernels.py. After Goto and van de Geijn, "Anatomy of high-performance
 * matrix multiplication" (2008).
 */
#include <stdint.h>
#include <string.h>

#ifndef __AVX2__
#error "this kernel is written for the registers of AVX2"
#endif

enum { LANES = 8, VECTORS = 3, PANEL = LANES * VECTORS, TILE = 4, DEPTH = 256, GROUP = 64, LINE = 16 };

typedef float vec __attribute__((vector_size(LANES * sizeof(float)), aligned(sizeof(float)), may_alias));

/* sums [TILE, PANEL] += `depth` inputs of TILE rows times a block. Prefetches `step` floats of `next` per input. */
static inline void add_tile(const float *const rows[TILE], const float *block, int64_t depth, float *sums,
                            const float *next, int64_t step) {
    const float *row0 = rows[0], *row1 = rows[1], *row2 = rows[2], *row3 = rows[3];
    vec sum[TILE][VECTORS];
    memcpy(sum, sums, sizeof sum);
    for (int64_t k = 0; k < depth; k++) {
        vec weight[VECTORS];
        __builtin_prefetch(next + k * step, 0, 2);
        if (step > LINE) __builtin_prefetch(next + k * step + LINE, 0, 2); /* a lone tile's share is two lines */
        for (int v = 0; v < VECTORS; v++) {
            weight[v] = *(const vec *)(block + k * PANEL + v * LANES);
            /* Keep it in a register: GCC would load it again for each of the four rows. */
            __asm__("" : "+x"(weight[v]));
        }
        for (int v = 0; v < VECTORS; v++) sum[0][v] += row0[k] * weight[v];
        for (int v = 0; v < VECTORS; v++) sum[1][v] += row1[k] * weight[v];
        for (int v = 0; v < VECTORS; v++) sum[2][v] += row2[k] * weight[v];
        for (int v = 0; v < VECTORS; v++) sum[3][v] += row3[k] * weight[v];
    }
    memcpy(sums, sum, sizeof sum);
}

/* One panel's outputs of up to GROUP rows. */
static void multiply_panel(const float *x, const float *panel, float *y, int64_t n_rows, int64_t n_in,
                           int64_t n_out, int64_t width) {
    int64_t n_tiles = (n_rows + TILE - 1) / TILE, step = (PANEL + n_tiles - 1) / n_tiles;
    float sums[GROUP * PANEL];
    memset(sums, 0, n_tiles * TILE * PANEL * sizeof(float));
    for (int64_t k = 0; k < n_in; k += DEPTH) {
        int64_t depth = n_in - k < DEPTH ? n_in - k : DEPTH;
        const float *block = panel + k * PANEL, *next = block + depth * PANEL;
        for (int64_t tile = 0; tile < n_tiles; tile++) {
            const float *rows[TILE];
            for (int r = 0; r < TILE; r++) {
                int64_t row = tile * TILE + r; /* the last tile repeats the last row */
                rows[r] = x + (row < n_rows ? row : n_rows - 1) * n_in + k;
            }
            add_tile(rows, block, depth, sums + tile * TILE * PANEL, next + tile * depth * step, step);
        }
    }
    for (int64_t row = 0; row < n_rows; row++) memcpy(y + row * n_out, sums + row * PANEL, width * sizeof(float));
}

void multiply(const float *x, const float *panels, float *y, int64_t n_rows, int64_t n_in, int64_t n_out) {
#pragma omp parallel for schedule(static)
    for (int64_t first = 0; first < n_out; first += PANEL)
        for (int64_t row = 0; row < n_rows; row += GROUP)
            multiply_panel(x + row * n_in, panels + first * n_in, y + row * n_out + first,
                           n_rows - row < GROUP ? n_rows - row : GROUP, n_in, n_out,
                           n_out - first < PANEL ? n_out - first : PANEL);
}
