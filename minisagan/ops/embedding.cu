// Embedding look-up (embedding.py). There is a thread for each element, and neighbouring threads share a row.

// y[n] = table[labels[n]], y (N, C).
extern "C" __global__ void embed(const real* __restrict__ table, const long long* __restrict__ labels,
                                 real* __restrict__ y, int N, int C) {
  int i = THREAD;
  if (i < N * C) y[i] = table[labels[i / C] * C + i % C];
}

// dtable[k] = the sum of g[n] over the n with labels[n] = k, in the order of n.
extern "C" __global__ void embed_backward(const real* __restrict__ g, const long long* __restrict__ labels,
                                          real* __restrict__ dtable, int N, int classes, int C) {
  int i = THREAD, k = i / C;
  if (k >= classes) return;
  real sum = 0;
  for (int n = 0; n < N; n++)
    if (labels[n] == k) sum += g[n * C + i % C];
  dtable[i] = sum;
}
