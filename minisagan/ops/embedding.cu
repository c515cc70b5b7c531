// Embedding look-up (embedding.py) in several tables at once, with the same labels: blockIdx.y is the table. An element
// of the result has a thread, or a column of them, and neighbouring threads share a row.

constexpr int TABLES = 64;

struct Table {
  const real* from;  // the table, or the cotangent of what was looked up in it
  int C, to, size;   // length of a row; where the result begins, and its size
};

struct Tables {  // comes by value, as part of the launch
  Table table[TABLES];
};

// y[n] = table[labels[n]], y (N, C).
extern "C" __global__ void embed(Tables all, const long long* __restrict__ labels, real* __restrict__ y, int N) {
  Table table = all.table[blockIdx.y];
  int i = THREAD, C = table.C;
  if (i < table.size) y[table.to + i] = table.from[labels[i / C] * C + i % C];
}

// dtable[k] = the sum of g[n] over the n with labels[n] = k, in the order of batch.slots.
extern "C" __global__ void embed_backward(Tables all, const long long* __restrict__ labels, real* __restrict__ dtable,
                                          int N) {
  Table g = all.table[blockIdx.y];
  int i = THREAD, C = g.C, k = i / C;
  real sum = 0;
  if (i < g.size)
    for (int n = threadIdx.y; n < N; n += blockDim.y)
      if (labels[n] == k) sum += g.from[n * C + i % C];
  sum = join_rows<1024>(sum);
  if (i < g.size && threadIdx.y == 0) dtable[g.to + i] = sum;
}
