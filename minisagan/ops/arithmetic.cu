// A product of matrices whose rows are images, for the gradient of weights that all images share (arithmetic.py).

// y[k, m] = sum_n a[n, k] g[n, m]: a (N, K), g (N, M), in the order of batch.slots. A column of threads has an element.
extern "C" __global__ void __launch_bounds__(1024)
    image_product(const real* a, const real* g, real* y, int N, int K, int M) {
  int i = THREAD, k = i / M, m = i % M;
  real sum = 0;
  if (k < K)
    for (int n = threadIdx.y; n < N; n += blockDim.y) sum += a[(long long)n * K + k] * g[(long long)n * M + m];
  sum = join_rows<1024>(sum);
  if (k < K && threadIdx.y == 0) y[i] = sum;
}
