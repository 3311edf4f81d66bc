/* The entry point of a row kernel: `m` rows, in tasks of CHUNK of them. */

void qcc_rows(const float *const *inputs, const long *input_steps, void *const *outputs, const long *output_steps, long m,
              int threads, launch_fn launch) {
    rows_job job = {inputs, input_steps, outputs, output_steps};
    if (m <= 0) return;
    if (threads <= 1 || !launch) rows_task(&job, 0, m, 0);
    else launch(rows_task, &job, m, CHUNK, threads);
}
