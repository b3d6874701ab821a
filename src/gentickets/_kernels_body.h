/* The kernels of _kernels.c for one type of number: REAL, of which LANES fill 64 bytes; WHOLE has as many bits.
 *
 * A batch is walked in vectors of one width: LANES, or where what it reads has no `room` for that many the largest power of
 * two that has. Where the last vector would reach beyond the batch, it begins earlier and overlaps the one before: a gather
 * writes the same numbers twice, a sample has the first lanes of its small side zeroed. A batch that does not fill a single
 * vector has zeros behind it, of which a gather writes none. So nothing is ever done number by number.
 */

#define VECTORS(W)                                                                                                     \
    typedef REAL NAME(vec##W) __attribute__((vector_size(W * sizeof(REAL)), aligned(sizeof(REAL))));                   \
    typedef WHOLE NAME(bits##W) __attribute__((vector_size(W * sizeof(REAL)), aligned(sizeof(REAL))));                 \
    /* Zero in the first lanes. */                                                                                     \
    INLINE NAME(vec##W) NAME(without##W)(NAME(vec##W) y, int64_t lanes) {                                              \
        return (NAME(vec##W))((NAME(bits##W))y & *(const NAME(bits##W) *)(NAME(kept) + LANES - lanes));                \
    }
static const WHOLE NAME(kept)[2 * LANES] = {[LANES ... 2 * LANES - 1] = -1};
#if LANES == 16
VECTORS(16)
#endif
VECTORS(8)
VECTORS(4)
VECTORS(2)
typedef REAL NAME(vec1);
INLINE REAL NAME(without1)(REAL y, int64_t lanes) { return lanes ? 0 : y; }

#define OF_WIDTH(name, W) NAME(GLUED(name, W))
#define VEC(W) OF_WIDTH(vec, W)

/* The width of the vectors where there is room for so many numbers. */
INLINE int64_t NAME(width_for)(int64_t room) {
    int64_t width = LANES;
    while (width > room) width /= 2;
    return width;
}

/* Where the last of so many vectors begins: so that it ends with what is left of the batch, or at its only place. */
INLINE int64_t NAME(last_of)(int64_t vectors, int64_t width, int64_t left, int64_t batch) {
    return left >= vectors * width || batch < width ? (vectors - 1) * width : left - width;
}

/* Of so many vectors that are left, how many are next: those for which there is a loop below. */
INLINE int64_t NAME(vectors_next)(int64_t width, int64_t left) {
    if (width < LANES || (LANES == 8 && left < 4)) return 1;
    return left > 5 || left == 4 || LANES == 8 ? 4 : left == 5 ? 3 : left; /* no 1 behind a 4 */
}

typedef struct {
    const rows_of_class *c;
    const REAL *values, *bias, *in, *gate;
    REAL *out;
    REAL slope;
    int64_t out_plane, batch, room, in_place, out_place, chunks;
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

/* The first numbers of a vector that the batch does not fill. */
INLINE void NAME(finish)(const REAL *acc, REAL *y, const REAL *gate, REAL slope, int64_t count) {
    for (int64_t j = 0; j < count; j++) {
        const REAL number = acc[j];
        y[j] = slope == 1 ? number : NAME(rectified)(number, gate ? gate[j] : number, slope);
    }
}

/* Where vector v of NV begins; the last one where it still ends within the batch. */
#define BEGINS(v, NV, W) ((v) < NV - 1 ? (int64_t)(v) * W : last)

#define GATHER_ONE(u, k, W, NV, T)                                                                                     \
    {                                                                                                                  \
        const REAL w = ordered ? g->values[c->order[k]] : g->values[k];                                                \
        const int64_t o = (int64_t)c->offset[k] * g->in_place;                                                         \
        for (int t = 0; t < T; t++)                                                                                    \
            for (int v = 0; v < NV; v++)                                                                               \
                acc[u][t][v] += w * *(const VEC(W) *)(in[t] + o + BEGINS(v, NV, W));                                   \
    }

/* T positions of NV vectors each, from position `at` on, for the rows from..to; U weights at a time, which keeps more
 * sums in flight where a position has few. */
#define GATHER_ROWS(W, NV, T, U)                                                                                       \
    {                                                                                                                  \
        const REAL *in[T];                                                                                             \
        REAL *out[T];                                                                                                  \
        for (int t = 0; t < T; t++) {                                                                                  \
            in[t] = g->in + (int64_t)c->from[at + t] * g->in_place + b;                                                \
            out[t] = g->out + (int64_t)c->to[at + t] * g->out_place + b;                                               \
        }                                                                                                              \
        for (int64_t r = from; r < to; r++) {                                                                          \
            VEC(W) acc[U][T][NV];                                                                                      \
            const int goes_on = c->channel[r] < 0;                                                                     \
            const int64_t channel = goes_on ? ~c->channel[r] : c->channel[r];                                          \
            const int64_t plane = channel * g->out_plane * g->out_place;                                               \
            const REAL bias = g->bias ? g->bias[channel] : 0;                                                          \
            for (int u = 0; u < U; u++)                                                                                \
                for (int t = 0; t < T; t++)                                                                            \
                    for (int v = 0; v < NV; v++) acc[u][t][v] = (VEC(W)){0} + (u || goes_on ? 0 : bias);               \
            for (int t = 0; goes_on && t < T; t++)                                                                     \
                for (int v = 0; v < NV; v++) acc[0][t][v] = *(VEC(W) *)(out[t] + plane + BEGINS(v, NV, W));            \
            int64_t k = c->begin[r];                                                                                   \
            const int64_t end = c->end[r];                                                                             \
            for (; k + U <= end; k += U)                                                                               \
                for (int u = 0; u < U; u++) GATHER_ONE(u, k + u, W, NV, T)                                             \
            for (; U > 1 && k < end; k++) GATHER_ONE(0, k, W, NV, T)                                                   \
            for (int t = 0; t < T; t++)                                                                                \
                for (int v = 0; v < NV; v++) {                                                                         \
                    REAL *y = out[t] + plane + BEGINS(v, NV, W);                                                       \
                    for (int u = 1; u < U; u++) acc[0][t][v] += acc[u][t][v];                                          \
                    const REAL *gate = g->gate ? g->gate + (y - g->out) : NULL;                                        \
                    if (NV == 1 && g->batch < W)                                                                       \
                        NAME(finish)((const REAL *)&acc[0][t][v], y, gate, g->slope, g->batch);                        \
                    else {                                                                                             \
                        *(VEC(W) *)y = acc[0][t][v];                                                                   \
                        if (g->slope != 1) NAME(rectify)(y, gate, g->slope, W);                                        \
                    }                                                                                                  \
                }                                                                                                      \
        }                                                                                                              \
    }

/* Four positions at a time, of short vectors two weights at a time, and those that are left one by one. */
#define GATHER(W, NV)                                                                                                  \
    {                                                                                                                  \
        for (; at + 4 <= end; at += 4) GATHER_ROWS(W, NV, 4, (NV == 1 ? 2 : 1))                                        \
        for (; at < end; at++) GATHER_ROWS(W, NV, 1, (NV > 2 ? 2 : 4))                                                 \
    }

/* All of a batch at the positions of a tile. */
INLINE void NAME(gather_tile)(const NAME(gather_args) *g, int64_t tile, int64_t from, int64_t to, const int ordered) {
    const rows_of_class *c = g->c;
    const int64_t first = tile * 4, end = first + 4 < c->positions ? first + 4 : c->positions;
    const int64_t width = NAME(width_for)(g->room);
    for (int64_t b = 0, left = (g->batch + width - 1) / width, next; left; b += next * width, left -= next) {
        next = NAME(vectors_next)(width, left);
        const int64_t last = NAME(last_of)(next, width, g->batch - b, g->batch);
        int64_t at = first;
        switch (next * 100 + width) {
#if LANES == 16
            case 416: GATHER(16, 4) break;
            case 316: GATHER(16, 3) break;
            case 216: GATHER(16, 2) break;
            case 116: GATHER(16, 1) break;
#else
            case 408: GATHER(8, 4) break;
#endif
            case 108: GATHER(8, 1) break;
            case 104: GATHER(4, 1) break;
            case 102: GATHER(2, 1) break;
            default: GATHER(1, 1) break;
        }
    }
}

CLONES static void NAME(gather_item)(const void *args, int64_t item) {
    const NAME(gather_args) *g = args;
    const int64_t tile = item / g->chunks, chunk = item % g->chunks;
    const int64_t from = g->c->rows * chunk / g->chunks, to = g->c->rows * (chunk + 1) / g->chunks;
    if (g->c->order)
        NAME(gather_tile)(g, tile, from, to, 1);
    else
        NAME(gather_tile)(g, tile, from, to, 0);
}

void NAME(gt_gather)(int64_t classes, const rows_of_class *c, const REAL *values, const REAL *bias, const REAL *in,
                     REAL *out, double slope, const REAL *gate, int64_t out_plane, int64_t batch, int64_t room,
                     int64_t in_place, int64_t out_place, int64_t threads) {
    for (int64_t i = 0; i < classes; i++) {
        const int64_t used = threads_worth(threads, c[i].weights * c[i].positions * batch);
        const int64_t tiles = (c[i].positions + 3) / 4;
        const int goes_on = c[i].rows && c[i].channel[c[i].rows - 1] < 0; /* rows that wait for others */
        const int64_t chunks = goes_on ? 1 : chunks_for(tiles, c[i].rows, used);
        const NAME(gather_args) g = {c + i, values, bias, in, gate, out, (REAL)slope, out_plane,
                                     batch, room, in_place, out_place, chunks};
        run(NAME(gather_item), &g, tiles * chunks, used);
    }
}

typedef struct {
    const rows_of_class *c;
    const REAL *small, *big;
    REAL *grad, *sums;
    int64_t small_plane, batch, room, small_place, big_place, chunks;
} NAME(sample_args);

/* The sums over the lanes of four vectors, together: a, b, c and d are folded into each other half by half. */
#if CAN_TURN
#define SHUFFLE __builtin_shufflevector
#if LANES == 16
INLINE NAME(vec4) NAME(sums16)(NAME(vec16) a, NAME(vec16) b, NAME(vec16) c, NAME(vec16) d) {
    const NAME(vec16) p = SHUFFLE(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
                          SHUFFLE(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    const NAME(vec16) q = SHUFFLE(c, d, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
                          SHUFFLE(c, d, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    NAME(vec16) s = SHUFFLE(p, q, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
                    SHUFFLE(p, q, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
    s += SHUFFLE(s, s, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
    s += SHUFFLE(s, s, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
    return SHUFFLE(s, s, 0, 4, 8, 12);
}
#endif
INLINE NAME(vec4) NAME(sums8)(NAME(vec8) a, NAME(vec8) b, NAME(vec8) c, NAME(vec8) d) {
    const NAME(vec8) p = SHUFFLE(a, b, 0, 1, 2, 3, 8, 9, 10, 11) + SHUFFLE(a, b, 4, 5, 6, 7, 12, 13, 14, 15);
    const NAME(vec8) q = SHUFFLE(c, d, 0, 1, 2, 3, 8, 9, 10, 11) + SHUFFLE(c, d, 4, 5, 6, 7, 12, 13, 14, 15);
    NAME(vec8) s = SHUFFLE(p, q, 0, 1, 4, 5, 8, 9, 12, 13) + SHUFFLE(p, q, 2, 3, 6, 7, 10, 11, 14, 15);
    s += SHUFFLE(s, s, 1, 0, 3, 2, 5, 4, 7, 6);
    return SHUFFLE(s, s, 0, 2, 4, 6);
}
INLINE NAME(vec4) NAME(sums4)(NAME(vec4) a, NAME(vec4) b, NAME(vec4) c, NAME(vec4) d) {
    const NAME(vec4) p = SHUFFLE(a, b, 0, 1, 4, 5) + SHUFFLE(a, b, 2, 3, 6, 7);
    const NAME(vec4) q = SHUFFLE(c, d, 0, 1, 4, 5) + SHUFFLE(c, d, 2, 3, 6, 7);
    return SHUFFLE(p, q, 0, 2, 4, 6) + SHUFFLE(p, q, 1, 3, 5, 7);
}
#undef SHUFFLE
#else
#define SUMS(W)                                                                                                        \
    INLINE NAME(vec4) NAME(sums##W)(NAME(vec##W) a, NAME(vec##W) b, NAME(vec##W) c, NAME(vec##W) d) {                  \
        NAME(vec4) s = {0};                                                                                            \
        for (int j = 0; j < W; j++) s += (NAME(vec4)){a[j], b[j], c[j], d[j]};                                         \
        return s;                                                                                                      \
    }
#if LANES == 16
SUMS(16)
#endif
SUMS(8)
SUMS(4)
#undef SUMS
#endif
INLINE NAME(vec4) NAME(sums2)(NAME(vec2) a, NAME(vec2) b, NAME(vec2) c, NAME(vec2) d) {
    return (NAME(vec4)){a[0] + a[1], b[0] + b[1], c[0] + c[1], d[0] + d[1]};
}
INLINE NAME(vec4) NAME(sums1)(REAL a, REAL b, REAL c, REAL d) { return (NAME(vec4)){a, b, c, d}; }
#define SUMS_OF(W, a, b, c, d) OF_WIDTH(sums, W)(a, b, c, d)

/* Adds the products of the T positions with weight k's big side to acc[u]. */
#define SAMPLE_ONE(u, k, W, NV, T)                                                                                     \
    {                                                                                                                  \
        const int64_t o = (int64_t)c->offset[k] * s->big_place;                                                        \
        for (int t = 0; t < T; t++)                                                                                    \
            for (int v = 0; v < NV; v++)                                                                               \
                acc[u][v % 2] += y[t][v] * *(const VEC(W) *)(big[t] + o + BEGINS(v, NV, W));                           \
    }

/* T positions of NV vectors each, from position `at` on; the weights of a row four at a time. */
#define SAMPLE_ROWS(W, NV, T)                                                                                          \
    {                                                                                                                  \
        const REAL *small[T], *big[T];                                                                                 \
        for (int t = 0; t < T; t++) {                                                                                  \
            big[t] = s->big + (int64_t)c->from[at + t] * s->big_place + b;                                             \
            small[t] = s->small + (int64_t)c->to[at + t] * s->small_place + b;                                         \
        }                                                                                                              \
        for (int64_t r = from; r < to; r++) {                                                                          \
            if (c->begin[r] == c->end[r] && !s->sums) continue;                                                        \
            const VEC(W) none = {0};                                                                                   \
            VEC(W) y[T][NV];                                                                                           \
            const int64_t channel = c->channel[r] < 0 ? ~c->channel[r] : c->channel[r];                                \
            const int64_t plane = channel * s->small_plane * s->small_place;                                           \
            for (int t = 0; t < T; t++) {                                                                              \
                for (int v = 0; v < NV; v++) y[t][v] = *(const VEC(W) *)(small[t] + plane + BEGINS(v, NV, W));         \
                y[t][NV - 1] = OF_WIDTH(without, W)(y[t][NV - 1], (NV - 1) * W - last);                                \
            }                                                                                                          \
            if (s->sums) {                                                                                             \
                VEC(W) all = {0};                                                                                      \
                for (int t = 0; t < T; t++)                                                                            \
                    for (int v = 0; v < NV; v++) all += y[t][v];                                                       \
                s->sums[channel] += SUMS_OF(W, all, none, none, none)[0];                                        \
            }                                                                                                          \
            int64_t k = c->begin[r];                                                                                   \
            const int64_t end = c->end[r];                                                                             \
            for (; k + 4 <= end; k += 4) {                                                                             \
                VEC(W) acc[4][2] = {{none, none}, {none, none}, {none, none}, {none, none}};                           \
                for (int u = 0; u < 4; u++) SAMPLE_ONE(u, k + u, W, NV, T)                                             \
                for (int u = 0; NV > 1 && u < 4; u++) acc[u][0] += acc[u][1];                                          \
                *(NAME(vec4) *)(s->grad + k) += SUMS_OF(W, acc[0][0], acc[1][0], acc[2][0], acc[3][0]);                \
            }                                                                                                          \
            for (; k < end; k++) {                                                                                     \
                VEC(W) acc[1][2] = {{none, none}};                                                                     \
                SAMPLE_ONE(0, k, W, NV, T)                                                                             \
                s->grad[k] += SUMS_OF(W, acc[0][0] + acc[0][1], none, none, none)[0];                                  \
            }                                                                                                          \
        }                                                                                                              \
    }

#define SAMPLE(W, NV)                                                                                                  \
    {                                                                                                                  \
        for (; at + 4 <= c->positions; at += 4) SAMPLE_ROWS(W, NV, 4)                                                  \
        for (; at < c->positions; at++) SAMPLE_ROWS(W, NV, 1)                                                          \
    }

CLONES static void NAME(sample_item)(const void *args, int64_t item) {
    const NAME(sample_args) *s = args;
    const rows_of_class *c = s->c;
    const int64_t from = c->rows * item / s->chunks, to = c->rows * (item + 1) / s->chunks;
    for (int64_t r = from; r < to; r++)
        for (int64_t k = c->begin[r]; k < c->end[r]; k++) s->grad[k] = 0;
    for (int64_t r = from; s->sums && r < to; r++) s->sums[c->channel[r]] = 0;
    const int64_t width = NAME(width_for)(s->room);
    for (int64_t b = 0, left = (s->batch + width - 1) / width, next; left; b += next * width, left -= next) {
        next = NAME(vectors_next)(width, left);
        const int64_t last = NAME(last_of)(next, width, s->batch - b, s->batch);
        int64_t at = 0;
        switch (next * 100 + width) {
#if LANES == 16
            case 416: SAMPLE(16, 4) break;
            case 316: SAMPLE(16, 3) break;
            case 216: SAMPLE(16, 2) break;
            case 116: SAMPLE(16, 1) break;
#else
            case 408: SAMPLE(8, 4) break;
#endif
            case 108: SAMPLE(8, 1) break;
            case 104: SAMPLE(4, 1) break;
            case 102: SAMPLE(2, 1) break;
            default: SAMPLE(1, 1) break;
        }
    }
}

void NAME(gt_sample)(const rows_of_class *c, const REAL *small, const REAL *big, REAL *grad, REAL *sums,
                     int64_t small_plane, int64_t batch, int64_t room, int64_t small_place, int64_t big_place,
                     int64_t threads) {
    const int64_t used = threads_worth(threads, c->weights * c->positions * batch);
    const int64_t chunks = chunks_for(1, c->rows, used);
    const NAME(sample_args) s = {c, small, big, grad, sums, small_plane, batch, room, small_place, big_place, chunks};
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
    OF_WIDTH(bits, LANES) lane;
    for (int j = 0; j < LANES; j++) lane[j] = (WHOLE)1 << (LANES - 1 - j);
    for (int64_t i = whole * item / m->chunks; i < whole * (item + 1) / m->chunks; i++) {
        WHOLE word = 0;
        for (int j = 0; j < LANES / 8; j++) word = word << 8 | m->bits[i * (LANES / 8) + j];
        ((OF_WIDTH(bits, LANES) *)m->weights)[i] &= (lane & word) != 0;
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
    int64_t rows, columns, in_row, out_row; /* the last two: numbers from one row to the next */
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
            const VEC(LANES) a = v[i], b = v[i + d];                                                                   \
            v[i] = __builtin_shufflevector(a, b, a0, a1, a2, a3, a4, a5, a6, a7, a8, a9, a10, a11, a12, a13, a14, a15);\
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
            const VEC(LANES) a = v[i], b = v[i + d];                                                                   \
            v[i] = __builtin_shufflevector(a, b, a0, a1, a2, a3, a4, a5, a6, a7);                                      \
            v[i + d] = __builtin_shufflevector(a, b, a0 + d, a1 + d, a2 + d, a3 + d, a4 + d, a5 + d, a6 + d, a7 + d);  \
        }
#endif
#endif

INLINE void NAME(turn_square)(const NAME(turn_args) *t, int64_t row, int64_t column) {
#if CAN_TURN
    VEC(LANES) v[LANES];
    for (int i = 0; i < LANES; i++) v[i] = *(const VEC(LANES) *)(t->in + (row + i) * t->in_row + column);
    HALVES(SWAP)
    for (int i = 0; i < LANES; i++) *(VEC(LANES) *)(t->out + (column + i) * t->out_row + row) = v[i];
#else
    for (int64_t i = row; i < row + LANES; i++)
        for (int64_t j = column; j < column + LANES; j++) t->out[j * t->out_row + i] = t->in[i * t->in_row + j];
#endif
}

/* A stripe of columns, which are rows of the output: of LANES of them, or of what is left of fewer. */
INLINE void NAME(turn_stripe)(const NAME(turn_args) *t, int64_t from, int64_t to) {
    if (to - from == LANES && t->rows >= LANES) {
        for (int64_t row = 0; row + LANES <= t->rows; row += LANES) NAME(turn_square)(t, row, from);
        if (t->rows % LANES) NAME(turn_square)(t, t->rows - LANES, from); /* some rows a second time */
        return;
    }
    for (int64_t j = from; j < to; j++)
        for (int64_t i = 0; i < t->rows; i++) t->out[j * t->out_row + i] = t->in[i * t->in_row + j];
}

/* An item is a stripe of LANES columns; the last one takes those beyond it too. */
CLONES static void NAME(turn_item)(const void *args, int64_t item) {
    const NAME(turn_args) *t = args;
    const int64_t from = item * LANES, to = from + LANES < t->columns ? from + LANES : t->columns;
    NAME(turn_stripe)(t, from, to);
    if (t->columns - to > 0 && t->columns - to < LANES) NAME(turn_stripe)(t, t->columns - LANES, t->columns);
}

/* (rows, columns) -> (columns, rows) */
void NAME(gt_turn)(const REAL *in, REAL *out, int64_t rows, int64_t columns, int64_t in_row, int64_t out_row,
                   int64_t threads) {
    const NAME(turn_args) t = {in, out, rows, columns, in_row, out_row};
    run(NAME(turn_item), &t, columns < LANES ? 1 : columns / LANES, threads_worth(threads, rows * columns));
}

#undef HALVES
#undef SWAP
#undef VECTORS
#undef OF_WIDTH
#undef VEC
#undef BEGINS
#undef GATHER_ONE
#undef GATHER_ROWS
#undef SUMS_OF
#undef SAMPLE_ONE
#undef SAMPLE_ROWS
#undef GATHER
#undef SAMPLE
