/* The kernels of _kernels.c for one type of number: REAL, of which LANES fill 64 bytes; WHOLE has as many bits. */

typedef REAL NAME(vec) __attribute__((vector_size(64), aligned(sizeof(REAL))));
typedef WHOLE NAME(bits) __attribute__((vector_size(64), aligned(sizeof(REAL))));

typedef struct {
    const rows_of_class *c;
    const REAL *values, *bias, *in, *gate;
    REAL *out;
    REAL slope;
    int64_t out_plane, batch, chunks;
} NAME(gather_args);

/* x stays where the gate is positive, or no number; elsewhere it becomes slope * x, 0 for a slope of 0 whatever x is. */
INLINE void NAME(rectify)(NAME(vec) *x, const NAME(vec) *gate, REAL slope) {
    const NAME(bits) shut = *gate <= 0, low = slope != 0 ? (NAME(bits))(*x * slope) : (NAME(bits)){0};
    *x = (NAME(vec))(((NAME(bits))*x & ~shut) | (low & shut));
}

/* T units (position, segment) of NV vectors each, for the rows from..to. */
#define GATHER_ROWS(NV, T, at)                                                                                         \
    for (int64_t r = from; r < to; r++) {                                                                              \
        NAME(vec) acc[T][NV];                                                                                          \
        const REAL b = g->bias ? g->bias[c->channel[r]] : 0;                                                           \
        for (int t = 0; t < T; t++)                                                                                    \
            for (int v = 0; v < NV; v++) acc[t][v] = (NAME(vec)){0} + b;                                               \
        for (int64_t k = c->ptr[r]; k < c->ptr[r + 1]; k++) {                                                          \
            const REAL w = ordered ? g->values[c->order[k]] : g->values[k];                                            \
            const int64_t o = (int64_t)c->offset[k] * g->batch;                                                        \
            for (int t = 0; t < T; t++) {                                                                              \
                const NAME(vec) *x = (const NAME(vec) *)(in[(at) + t] + o);                                            \
                for (int v = 0; v < NV; v++) acc[t][v] += w * x[v];                                                    \
            }                                                                                                          \
        }                                                                                                              \
        const int64_t plane = (int64_t)c->channel[r] * g->out_plane * g->batch;                                        \
        for (int t = 0; t < T; t++) {                                                                                  \
            NAME(vec) *y = (NAME(vec) *)(out[(at) + t] + plane);                                                       \
            if (rectified) {                                                                                           \
                const NAME(vec) *gate = g->gate ? (const NAME(vec) *)(g->gate + ((REAL *)y - g->out)) : acc[t];        \
                for (int v = 0; v < NV; v++) NAME(rectify)(acc[t] + v, gate + v, g->slope);                            \
            }                                                                                                          \
            for (int v = 0; v < NV; v++) y[v] = acc[t][v];                                                             \
        }                                                                                                              \
    }

INLINE void NAME(gather_rest)(const NAME(gather_args) *g, const REAL *in, REAL *out, int64_t from, int64_t to, int rest) {
    const rows_of_class *c = g->c;
    for (int64_t r = from; r < to; r++) {
        REAL acc[LANES];
        for (int j = 0; j < rest; j++) acc[j] = g->bias ? g->bias[c->channel[r]] : 0;
        for (int64_t k = c->ptr[r]; k < c->ptr[r + 1]; k++) {
            const REAL w = g->values[c->order ? c->order[k] : k];
            const REAL *x = in + (int64_t)c->offset[k] * g->batch;
            for (int j = 0; j < rest; j++) acc[j] += w * x[j];
        }
        REAL *y = out + (int64_t)c->channel[r] * g->out_plane * g->batch;
        for (int j = 0; j < rest; j++) {
            const REAL gate = g->gate ? g->gate[y - g->out + j] : acc[j];
            y[j] = g->slope == 1 || !(gate <= 0) ? acc[j] : g->slope != 0 ? acc[j] * g->slope : 0;
        }
    }
}

INLINE void NAME(gather_tile)(const NAME(gather_args) *g, int64_t tile, int64_t from, int64_t to, const int ordered,
                              const int rectified) {
    const rows_of_class *c = g->c;
    const REAL *in[4];
    REAL *out[4];
    const int64_t first = tile * 4;
    const int count = c->positions - first < 4 ? (int)(c->positions - first) : 4;
    int64_t b = 0;
#define POINT(width)                                                                                                   \
    for (int t = 0; t < count; t++) {                                                                                  \
        in[t] = g->in + (int64_t)c->from[first + t] * g->batch + b;                                                    \
        out[t] = g->out + (int64_t)c->to[first + t] * g->batch + b;                                                    \
    }
    for (; b + 4 * LANES <= g->batch; b += 4 * LANES) {
        POINT()
        if (count == 4) {
            GATHER_ROWS(4, 4, 0)
        } else
            for (int u = 0; u < count; u++) { GATHER_ROWS(4, 1, u) }
    }
    for (; b + LANES <= g->batch; b += LANES) {
        POINT()
        if (count == 4) {
            GATHER_ROWS(1, 4, 0)
        } else
            for (int u = 0; u < count; u++) { GATHER_ROWS(1, 1, u) }
    }
    if (b < g->batch) {
        POINT()
        for (int u = 0; u < count; u++) NAME(gather_rest)(g, in[u], out[u], from, to, (int)(g->batch - b));
    }
#undef POINT
}

CLONES static void NAME(gather_item)(const void *args, int64_t item) {
    const NAME(gather_args) *g = args;
    const int64_t tile = item / g->chunks, chunk = item % g->chunks;
    const int64_t from = g->c->rows * chunk / g->chunks, to = g->c->rows * (chunk + 1) / g->chunks;
    if (g->c->order && g->slope == 1)
        NAME(gather_tile)(g, tile, from, to, 1, 0);
    else if (g->slope == 1)
        NAME(gather_tile)(g, tile, from, to, 0, 0);
    else if (g->c->order)
        NAME(gather_tile)(g, tile, from, to, 1, 1);
    else
        NAME(gather_tile)(g, tile, from, to, 0, 1);
}

void NAME(gt_gather)(int64_t classes, const rows_of_class *c, const REAL *values, const REAL *bias, const REAL *in,
                     REAL *out, double slope, const REAL *gate, int64_t out_plane, int64_t batch, int64_t threads) {
    for (int64_t i = 0; i < classes; i++) {
        const int64_t used = threads_worth(threads, c[i].ptr[c[i].rows] * c[i].positions * batch);
        const int64_t tiles = (c[i].positions + 3) / 4, chunks = chunks_for(tiles, c[i].rows, used);
        const NAME(gather_args) g = {c + i, values, bias, in, gate, out, (REAL)slope, out_plane, batch, chunks};
        run(NAME(gather_item), &g, tiles * chunks, used);
    }
}

typedef struct {
    const rows_of_class *c;
    const REAL *small, *big;
    REAL *grad, *sums;
    int64_t small_plane, batch, chunks;
} NAME(sample_args);

/* The sum over the lanes, by halves where the compiler can turn a vector. */
INLINE REAL NAME(sum)(const NAME(vec) *v) {
#if CAN_TURN
    NAME(vec) a = *v;
#if LANES == 16
    a += __builtin_shufflevector(a, a, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
    a += __builtin_shufflevector(a, a, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
    a += __builtin_shufflevector(a, a, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
    a += __builtin_shufflevector(a, a, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
#else
    a += __builtin_shufflevector(a, a, 4, 5, 6, 7, 0, 1, 2, 3);
    a += __builtin_shufflevector(a, a, 2, 3, 0, 1, 6, 7, 4, 5);
    a += __builtin_shufflevector(a, a, 1, 0, 3, 2, 5, 4, 7, 6);
#endif
    return a[0];
#else
    REAL total = 0;
    for (int j = 0; j < LANES; j++) total += (*v)[j];
    return total;
#endif
}

#define SAMPLE_ROWS(NV, T, at)                                                                                         \
    for (int64_t r = from; r < to; r++) {                                                                              \
        if (c->ptr[r] == c->ptr[r + 1] && !s->sums) continue;                                                          \
        NAME(vec) y[T][NV];                                                                                            \
        const int64_t plane = (int64_t)c->channel[r] * s->small_plane * s->batch;                                      \
        for (int t = 0; t < T; t++)                                                                                    \
            for (int v = 0; v < NV; v++) y[t][v] = ((const NAME(vec) *)(small[(at) + t] + plane))[v];                  \
        if (s->sums) {                                                                                                 \
            NAME(vec) all = {0};                                                                                       \
            for (int t = 0; t < T; t++)                                                                                \
                for (int v = 0; v < NV; v++) all += y[t][v];                                                           \
            s->sums[c->channel[r]] += NAME(sum)(&all);                                                                 \
        }                                                                                                              \
        for (int64_t k = c->ptr[r]; k < c->ptr[r + 1]; k++) {                                                          \
            const int64_t o = (int64_t)c->offset[k] * s->batch;                                                        \
            NAME(vec) acc[NV];                                                                                         \
            for (int v = 0; v < NV; v++) acc[v] = (NAME(vec)){0};                                                      \
            for (int t = 0; t < T; t++)                                                                                \
                for (int v = 0; v < NV; v++) acc[v] += y[t][v] * ((const NAME(vec) *)(big[(at) + t] + o))[v];          \
            for (int v = 1; v < NV; v++) acc[0] += acc[v];                                                             \
            s->grad[k] += NAME(sum)(acc);                                                                              \
        }                                                                                                              \
    }

CLONES static void NAME(sample_item)(const void *args, int64_t item) {
    const NAME(sample_args) *s = args;
    const rows_of_class *c = s->c;
    const int64_t from = c->rows * item / s->chunks, to = c->rows * (item + 1) / s->chunks;
    for (int64_t k = c->ptr[from]; k < c->ptr[to]; k++) s->grad[k] = 0;
    for (int64_t r = from; s->sums && r < to; r++) s->sums[c->channel[r]] = 0;
    for (int64_t first = 0; first < c->positions; first += 4) {
        const REAL *small[4], *big[4];
        const int count = c->positions - first < 4 ? (int)(c->positions - first) : 4;
        int64_t b = 0;
#define POINT()                                                                                                        \
    for (int t = 0; t < count; t++) {                                                                                  \
        big[t] = s->big + (int64_t)c->from[first + t] * s->batch + b;                                                  \
        small[t] = s->small + (int64_t)c->to[first + t] * s->batch + b;                                                \
    }
        for (; b + 4 * LANES <= s->batch; b += 4 * LANES) {
            POINT()
            if (count == 4) {
                SAMPLE_ROWS(4, 4, 0)
            } else
                for (int u = 0; u < count; u++) { SAMPLE_ROWS(4, 1, u) }
        }
        for (; b + LANES <= s->batch; b += LANES) {
            POINT()
            if (count == 4) {
                SAMPLE_ROWS(1, 4, 0)
            } else
                for (int u = 0; u < count; u++) { SAMPLE_ROWS(1, 1, u) }
        }
        if (b == s->batch) continue;
        POINT()
        for (int u = 0; u < count; u++)
            for (int64_t r = from; r < to; r++) {
                const REAL *y = small[u] + (int64_t)c->channel[r] * s->small_plane * s->batch;
                if (s->sums) {
                    REAL all = 0;
                    for (int64_t j = 0; j < s->batch - b; j++) all += y[j];
                    s->sums[c->channel[r]] += all;
                }
                for (int64_t k = c->ptr[r]; k < c->ptr[r + 1]; k++) {
                    const REAL *x = big[u] + (int64_t)c->offset[k] * s->batch;
                    REAL total = 0;
                    for (int64_t j = 0; j < s->batch - b; j++) total += y[j] * x[j];
                    s->grad[k] += total;
                }
            }
#undef POINT
    }
}

void NAME(gt_sample)(const rows_of_class *c, const REAL *small, const REAL *big, REAL *grad, REAL *sums,
                     int64_t small_plane, int64_t batch, int64_t threads) {
    const int64_t used = threads_worth(threads, c->ptr[c->rows] * c->positions * batch);
    const int64_t chunks = chunks_for(1, c->rows, used);
    const NAME(sample_args) s = {c, small, big, grad, sums, small_plane, batch, chunks};
    run(NAME(sample_item), &s, chunks, used);
}

typedef struct {
    REAL *weights;
    const uint8_t *bits;
    int64_t count, chunks;
} NAME(mask_args);

CLONES static void NAME(mask_item)(const void *args, int64_t item) {
    const NAME(mask_args) *m = args;
    const int64_t whole = m->count / LANES;
    NAME(bits) lane;
    for (int j = 0; j < LANES; j++) lane[j] = (WHOLE)1 << (LANES - 1 - j);
    for (int64_t i = whole * item / m->chunks; i < whole * (item + 1) / m->chunks; i++) {
        WHOLE word = 0;
        for (int j = 0; j < LANES / 8; j++) word = word << 8 | m->bits[i * (LANES / 8) + j];
        ((NAME(bits) *)m->weights)[i] &= (lane & word) != 0;
    }
    for (int64_t k = whole * LANES; item == m->chunks - 1 && k < m->count; k++)
        if (!(m->bits[k / 8] >> (7 - k % 8) & 1)) m->weights[k] = 0;
}

/* 0 in the place of every weight whose bit is 0; the bits are packed, the highest of a byte first. */
void NAME(gt_mask)(REAL *weights, const uint8_t *bits, int64_t count, int64_t threads) {
    const int64_t chunks = threads_worth(threads, count);
    const NAME(mask_args) m = {weights, bits, count, chunks};
    run(NAME(mask_item), &m, chunks, chunks);
}

#undef GATHER_ROWS
#undef SAMPLE_ROWS
