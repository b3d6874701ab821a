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

/* y stays where the gate is positive, or no number; elsewhere it becomes slope * y, 0 for a slope of 0 whatever y is.
 * Number by number, which a compiler turns into vectors; comparisons of its own vectors it takes apart. */
INLINE REAL NAME(rectified)(REAL y, REAL gate, REAL slope) {
    return !(gate <= 0) ? y : slope != 0 ? slope * y : 0;
}

INLINE void NAME(rectify)(REAL *restrict y, const REAL *restrict gate, REAL slope, const int count) {
    if (gate)
        for (int j = 0; j < count; j++) y[j] = NAME(rectified)(y[j], gate[j], slope);
    else
        for (int j = 0; j < count; j++) y[j] = NAME(rectified)(y[j], y[j], slope);
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
            for (int v = 0; v < NV; v++) y[v] = acc[t][v];                                                             \
            if (rectified)                                                                                             \
                NAME(rectify)((REAL *)y, g->gate ? g->gate + ((REAL *)y - g->out) : NULL, g->slope, NV * LANES);       \
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
        for (int j = 0; j < rest; j++)
            y[j] = g->slope == 1 ? acc[j] : NAME(rectified)(acc[j], g->gate ? g->gate[y - g->out + j] : acc[j], g->slope);
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

typedef struct {
    const REAL *in;
    REAL *out;
    int64_t rows, columns;
} NAME(turn_args);

/* A square of LANES rows and columns: squares of half the side change places, then those within them, and so on. */
#if CAN_TURN
#if LANES == 16
#define HALVES(SWAP)                                                                                                   \
    SWAP(8, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23)                                                    \
    SWAP(4, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27)                                                  \
    SWAP(2, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29)                                                  \
    SWAP(1, 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30)
#define SWAP(d, a0, a1, a2, a3, a4, a5, a6, a7, a8, a9, a10, a11, a12, a13, a14, a15)                                  \
    for (int i = 0; i < LANES; i++)                                                                                    \
        if (!(i & d)) {                                                                                                \
            const NAME(vec) a = v[i], b = v[i + d];                                                                    \
            v[i] = __builtin_shufflevector(a, b, a0, a1, a2, a3, a4, a5, a6, a7, a8, a9, a10, a11, a12, a13, a14, a15); \
            v[i + d] = __builtin_shufflevector(a, b, a0 + d, a1 + d, a2 + d, a3 + d, a4 + d, a5 + d, a6 + d, a7 + d,   \
                                               a8 + d, a9 + d, a10 + d, a11 + d, a12 + d, a13 + d, a14 + d, a15 + d);  \
        }
#else
#define HALVES(SWAP)                                                                                                   \
    SWAP(4, 0, 1, 2, 3, 8, 9, 10, 11)                                                                                  \
    SWAP(2, 0, 1, 8, 9, 4, 5, 12, 13)                                                                                  \
    SWAP(1, 0, 8, 2, 10, 4, 12, 6, 14)
#define SWAP(d, a0, a1, a2, a3, a4, a5, a6, a7)                                                                        \
    for (int i = 0; i < LANES; i++)                                                                                    \
        if (!(i & d)) {                                                                                                \
            const NAME(vec) a = v[i], b = v[i + d];                                                                    \
            v[i] = __builtin_shufflevector(a, b, a0, a1, a2, a3, a4, a5, a6, a7);                                      \
            v[i + d] = __builtin_shufflevector(a, b, a0 + d, a1 + d, a2 + d, a3 + d, a4 + d, a5 + d, a6 + d, a7 + d);  \
        }
#endif
#endif

INLINE void NAME(turn_square)(const NAME(turn_args) *t, int64_t row, int64_t column) {
#if CAN_TURN
    NAME(vec) v[LANES];
    for (int i = 0; i < LANES; i++) v[i] = *(const NAME(vec) *)(t->in + (row + i) * t->columns + column);
    HALVES(SWAP)
    for (int i = 0; i < LANES; i++) *(NAME(vec) *)(t->out + (column + i) * t->rows + row) = v[i];
#else
    for (int64_t i = row; i < row + LANES; i++)
        for (int64_t j = column; j < column + LANES; j++) t->out[j * t->rows + i] = t->in[i * t->columns + j];
#endif
}

/* An item is a stripe of LANES columns, which are rows of the output. */
CLONES static void NAME(turn_item)(const void *args, int64_t item) {
    const NAME(turn_args) *t = args;
    const int64_t from = item * LANES, to = from + LANES < t->columns ? from + LANES : t->columns;
    int64_t row = 0;
    if (to - from == LANES)
        for (; row + LANES <= t->rows; row += LANES) NAME(turn_square)(t, row, from);
    for (int64_t j = from; j < to; j++)
        for (int64_t i = row; i < t->rows; i++) t->out[j * t->rows + i] = t->in[i * t->columns + j];
}

/* (rows, columns) -> (columns, rows) */
void NAME(gt_turn)(const REAL *in, REAL *out, int64_t rows, int64_t columns, int64_t threads) {
    const NAME(turn_args) t = {in, out, rows, columns};
    run(NAME(turn_item), &t, (columns + LANES - 1) / LANES, threads_worth(threads, rows * columns));
}

#undef HALVES
#undef SWAP
#undef GATHER_ROWS
#undef SAMPLE_ROWS
