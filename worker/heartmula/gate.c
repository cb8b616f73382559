/* The gate of SwiGLU (Shazeer 2020): x [n_rows, 2 n], gate beside up -> y [n_rows, n] = silu(gate) * up, all float.
 * Compiled at start by kernels.py.
 *
 * Every number goes through the same instructions, wherever it stands: a loop whose remainder is not
 * vectorised rounds it differently, and then a row's result depends on the other rows.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#define LANES 16
#define BLOCK 1024

static inline void gate_lanes(const float *gate, const float *up, float *y) {
    for (int i = 0; i < LANES; i++) y[i] = gate[i] / (1 + expf(-gate[i])) * up[i];
}

void gate(const float *x, float *y, int64_t n_rows, int64_t n, int64_t n_threads) {
#pragma omp parallel for collapse(2) schedule(static) num_threads(n_threads)
    for (int64_t row = 0; row < n_rows; row++)
        for (int64_t block = 0; block < n; block += BLOCK) {
            const float *from = x + row * 2 * n;
            int64_t end = block + BLOCK < n ? block + BLOCK : n, i = block;
            for (; i + LANES <= end; i += LANES) gate_lanes(from + i, from + n + i, y + row * n + i);
            if (i < end) {
                float padded[3][LANES] = {{0}};
                memcpy(padded[0], from + i, (end - i) * sizeof(float));
                memcpy(padded[1], from + n + i, (end - i) * sizeof(float));
                gate_lanes(padded[0], padded[1], padded[2]);
                memcpy(y + row * n + i, padded[2], (end - i) * sizeof(float));
            }
        }
}
