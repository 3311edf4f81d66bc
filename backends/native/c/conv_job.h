/* What a convolution kernel is called with. */

typedef void (*task_fn)(void *data, long first, long last, int thread);
typedef void (*launch_fn)(task_fn task, void *data, long count, long chunk, int threads);

typedef struct {
    const uint8_t *x;       /* images in blocks, codes as unsigned bytes */
    const int8_t *w;        /* packed weight, WEIGHT_BLOCK bytes for 16 channels */
    const int32_t *start;   /* 16 numbers a block of channels: what sums start with */
    const float *scale;     /* 16 numbers a block of channels */
    output *y;
    int zero, low, high;    /* of codes: that of zero, and the ends of the clamp */
    float least, most;      /* of numbers: the ends of the clamp */
    const float *numbers;   /* the scale of the result, then those of the epilogue */
    long height, width;     /* of a result */
    long x_row, x_plane, x_image, y_row, y_plane, y_image; /* elements from one to the next */
} conv_job;

#define X_ROW (STRIDE_ROWS * job->x_row)
#define X_PIXEL (STRIDE_COLUMNS * X_BLOCK)
