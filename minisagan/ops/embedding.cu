// Embedding look-up (embedding.py). An element has a thread, or a column of them, and neighbouring threads share a row.

// y[n] = table[labels[n]], y (N, C).
extern "C" __global__ void embed(const real* __restrict__ table, const long long* __restrict__ labels,
                                 real* __restrict__ y, int N, int C) {
  int i = THREAD;
  if (i < N * C) y[i] = table[labels[i / C] * C + i % C];
}

// dtable[k] = the sum of g[n] over the n with labels[n] = k, in the order of batch.slots.
extern "C" __global__ void embed_backward(const real* __restrict__ g, const long long* __restrict__ labels,
                                          real* __restrict__ dtable, int N, int classes, int C) {
  int i = THREAD, k = i / C;
  real sum = 0;
  if (k < classes)
    for (int n = threadIdx.y; n < N; n += blockDim.y)
      if (labels[n] == k) sum += g[n * C + i % C];
  sum = join_rows<1024>(sum);
  if (k < classes && threadIdx.y == 0) dtable[i] = sum;
}
