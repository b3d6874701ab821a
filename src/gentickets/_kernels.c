/* Sparse linear and convolutional layers, batch innermost.
 *
 * Every activation is (channel, position, batch), the batch contiguous, so that one live weight is one multiply-add of
 * vectors: no gather, no index per multiplication, nothing computed for weights that are not there. A tile of outputs
 * (a few positions times a segment of the batch) stays in registers while all live weights of its row pass by.
 *
 * Two operations serve all layers; sparse/layout.py says how:
 *   gather   out[row, position] = bias[row] + sum over k of value[k] * in[offset[k] + position], rectified if asked
 *   sample   grad[k] = sum over positions of small[row of k, position] . big[offset[k] + position]
 *            sums[row] = sum over positions of small[row, position], the gradient of the bias, if asked
 *
 * Beside them: mask holds a dense layer to its mask (it reads one bit a weight, where a product reads four bytes), pad
 * puts zeros around images, turn transposes what comes in and goes out batch first, and tanh ends most generators.
 *
 * Offsets and positions count places: element = (offset + position) * place, where a place has room for the batch. With
 * places of one number the same loops walk images as torch lays them out, a row of pixels in the part of the batch:
 * sparse/wide.py says how.
 */
#ifdef __has_include
#if __has_include(<Python.h>)
#include <Python.h>
#define AS_MODULE 1
#endif
#endif
#include <stdint.h>
#include <stddef.h>
#include <string.h>

/* One version for each kind of x86 machine, chosen when the library is loaded: as GCC can on glibc. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CLONES
#endif
#ifdef __has_builtin
#if __has_builtin(__builtin_shufflevector)
#define CAN_TURN 1
#endif
#endif
#define INLINE static inline __attribute__((always_inline))
#define PASTED(a, b) a##b
#define GLUED(a, b) PASTED(a, b) /* both expanded first */

/* -- work shared among torch's own threads ------------------------------------------------------------------------- */

typedef void (*item_fn)(const void *args, int64_t item);
typedef void (*parallel_fn)(void (*fn)(void *), void *data, unsigned threads, unsigned flags);
typedef struct { item_fn fn; const void *args; int64_t next, total; } job;

static parallel_fn parallel = NULL; /* GOMP_parallel of the OpenMP that torch runs on; none: one thread */

/* Of what is below, as kernels.py calls it: one that was compiled for another version is left alone. */
const int64_t gt_version = 3;

void gt_set_parallel(void *address) { parallel = (parallel_fn)address; }

static void work(void *data) {
    job *j = data;
    for (;;) {
        int64_t item = __atomic_fetch_add(&j->next, 1, __ATOMIC_RELAXED);
        if (item >= j->total) return;
        j->fn(j->args, item);
    }
}

static void run(item_fn fn, const void *args, int64_t total, int64_t threads) {
    job j = {fn, args, 0, total};
    if (parallel && threads > 1 && total > 1)
        parallel(work, &j, (unsigned)threads, 0);
    else
        work(&j);
}

/* Handing work to a second thread takes about as long as half a million multiply-adds. */
INLINE int64_t threads_worth(int64_t threads, int64_t multiply_adds) {
    return multiply_adds < 1000000 ? 1 : threads;
}

/* How a call is cut into items: units are (position, segment of the batch), four of which make a tile. */
INLINE int64_t chunks_for(int64_t tiles, int64_t rows, int64_t threads) {
    if (threads < 2 || tiles >= 4 * threads) return 1;
    int64_t chunks = (4 * threads + tiles - 1) / tiles;
    return chunks < rows ? chunks : (rows > 0 ? rows : 1);
}

typedef struct {
    int64_t rows, weights;     /* of this class */
    const int64_t *begin, *end; /* per row: its weights */
    const int32_t *offset;     /* per weight: where its input lies */
    const int32_t *order;      /* per weight: its place in values; NULL: its own */
    const int32_t *channel;    /* per row: its channel in the output; ~channel: what is there already is added to */
    int64_t positions;
    const int32_t *from;       /* per position: in the input */
    const int32_t *to;         /* per position: in the output */
} rows_of_class;

/* Images with zeros around them; the bytes of a batch, and those of its place in the output, where zeros follow it; and how
 * many rows and columns are added on each side. */
typedef struct {
    const char *in;
    char *out;
    int64_t height, width, batch, place, top, bottom, left, right;
} pad_args;

/* An item is a channel. */
static void pad_item(const void *args, int64_t item) {
    const pad_args *p = args;
    const size_t batch = (size_t)p->batch, place = (size_t)p->place, row = (size_t)p->width * place;
    const size_t left = (size_t)p->left * place, right = (size_t)p->right * place, wide = left + row + right;
    const char *in = p->in + (size_t)(item * p->height * p->width) * batch;
    char *out = p->out + (size_t)item * (size_t)(p->top + p->height + p->bottom) * wide;
    memset(out, 0, (size_t)p->top * wide);
    out += (size_t)p->top * wide;
    for (int64_t i = 0; i < p->height; i++, out += wide) {
        memset(out, 0, left);
        if (batch == place)
            memcpy(out + left, in, row), in += row;
        else
            for (size_t at = left; at < left + row; at += place, in += batch) {
                memcpy(out + at, in, batch);
                memset(out + at + batch, 0, place - batch);
            }
        memset(out + left + row, 0, right);
    }
    memset(out, 0, (size_t)p->bottom * wide);
}

void gt_pad(const void *in, void *out, int64_t channels, int64_t height, int64_t width, int64_t batch, int64_t place,
            int64_t top, int64_t bottom, int64_t left, int64_t right, int64_t threads) {
    const pad_args p = {in, out, height, width, batch, place, top, bottom, left, right};
    run(pad_item, &p, channels, threads_worth(threads, channels * height * width * place));
}

#define REAL float
#define LANES 16
#define WHOLE int32_t
#define NAME(x) GLUED(x, _f32)
#include "_kernels_body.h"
#undef REAL
#undef LANES
#undef WHOLE
#undef NAME
/* tanh x as x P(x^2) / Q(x^2), P and Q fitted to the smallest relative error on [0, 9]: 2e-8, to which rounding adds up to
 * 4e-7. From 9 on it is 1. */
typedef struct {
    const float *in;
    float *out;
    int64_t count, chunks;
} tanh_args;

INLINE float clamped(float x, float bound) { return x > bound ? bound : x < -bound ? -bound : x; } /* NaN stays NaN */

CLONES static void tanh_item(const void *args, int64_t item) {
    const tanh_args *t = args;
    const float *restrict in = t->in;
    float *restrict out = t->out;
    for (int64_t i = t->count * item / t->chunks; i < t->count * (item + 1) / t->chunks; i++) {
        const float x = clamped(in[i], 9), z = x * x;
        float p = 2.060894162e-05f + z * 1.335447123e-08f, q = 3.285620775e-04f + z * 7.776479267e-07f;
        p = 3.495579536e-03f + z * p, q = 2.587694956e-02f + z * q;
        p = 1.338101843e-01f + z * p, q = 4.671433402e-01f + z * q;
        p = 9.999999795e-01f + z * p, q = 1 + z * q;
        const float y = clamped(x * (p / q), 1), no_less = x == 9 ? 1 : y;
        out[i] = x == -9 ? -1 : no_less;
    }
}

void gt_tanh_f32(const float *in, float *out, int64_t count, int64_t threads) {
    const int64_t chunks = threads_worth(threads, 16 * count);
    const tanh_args t = {in, out, count, chunks};
    run(tanh_item, &t, chunks, chunks);
}

#define REAL double
#define LANES 8
#define WHOLE int64_t
#define NAME(x) GLUED(x, _f64)
#include "_kernels_body.h"

#if AS_MODULE /* called by way of ctypes; as a module it is empty, for who imports all that lies in the package */
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_kernels", NULL, -1, NULL, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__kernels(void) { return PyModule_Create(&module); }
#endif
