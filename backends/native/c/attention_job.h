/* What attention kernels are called with. Strides are in elements; the values of one head lie side by side. */
#include <stdatomic.h>
#include <stddef.h>

typedef void (*task_fn)(void *data, long first, long last, int thread);
typedef void (*launch_fn)(task_fn task, void *data, long count, long chunk, int threads);

/* Numbers [batch, heads, tokens, SIZE] */
typedef struct { int64_t batch, head, token; } strides;

typedef struct {
    const float *q;           /* [batch, HEADS, queries, SIZE] */
    float *y;                 /* of the same shape */
    const element *k, *v;     /* [batch, KV_HEADS, capacity, SIZE] */
    const float *k_scale, *v_scale; /* [batch, KV_HEADS, capacity]: of codes, else unused */
    const void *mask;         /* [batch, HEADS, queries, keys]: bytes that are not 0 where a key is seen, or numbers to add */
    const int64_t *lengths;   /* [batch]: keys there are; the last `queries` of them are those of the queries */
    strides q_by, y_by, kv_by, scale_by, mask_by; /* of a mask, 0 where it is the same for all */
    int64_t batch, queries;
    void *scratch;            /* as many bytes as qcc_attention_scratch says, at a multiple of 64 */
    int64_t threads;
    launch_fn launch;
} attention_call;

typedef struct {
    const float *k, *v;       /* [batch, KV_HEADS, count, SIZE] */
    element *to_k, *to_v;     /* [batch, KV_HEADS, capacity, SIZE] */
    float *k_scale, *v_scale; /* [batch, KV_HEADS, capacity]: of codes, else unused */
    const int64_t *past;      /* [batch]: where the new ones begin */
    strides by, v_by, kv_by, scale_by; /* of k, of v, of the cache and its scales */
    int64_t batch, count, threads;
    launch_fn launch;
} append_call;
