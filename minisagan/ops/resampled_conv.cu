// 3x3 kernels convolved with a 2x2 box, and the transpose of that (resampled_conv.py). An element has a thread.

// u[i] = factor (w[i] + w[i - 1]) on each axis: w (3, 3, CO) -> u (4, 4, CO).
extern "C" __global__ void smear(const real* w, real* u, real factor, int CO) {
  int tap = THREAD / CO, i = tap / 4, j = tap % 4;
  if (tap >= 16) return;
  real sum = 0;
  for (int a = max(i - 1, 0); a <= min(i, 2); a++)
    for (int b = max(j - 1, 0); b <= min(j, 2); b++) sum += w[(a * 3 + b) * CO + THREAD % CO];
  u[THREAD] = factor * sum;
}

// w[i] = factor (u[i] + u[i + 1]) on each axis, summed over the rows of u, each (4, 4, C, O): w (3, 3, C, O). A row of
// u ends in one of O numbers, whose sum is w's last row. Where it is transposed a row is turned and (4, 4, O, C), and
// there is no such end of w. A column of threads has an element, in the order of u; rows are summed as in column_sums.
extern "C" __global__ void __launch_bounds__(1024)
    unsmear(const real* u, real* w, real factor, int rows, int C, int O, int transposed) {
  int CO = C * O, tap = THREAD / CO, i = THREAD % CO, last = transposed ? C : O;
  bool of_w = tap < 9, of_end = !transposed && tap == 9 && i < O;
  real sum = 0;
  for (int r = threadIdx.y; r < rows && (of_w || of_end); r += blockDim.y) {
    const real* row = u + (long long)r * (16 * CO + last);
    real one = 0;
    for (int k = 0; k < 4 && of_w; k++) {
      int at = (tap / 3 + k / 2) * 4 + tap % 3 + k % 2;
      one += row[(transposed ? 15 - at : at) * CO + i];
    }
    sum += of_end ? row[16 * CO + i] : factor * one;
  }
  sum = join_rows<1024>(sum);
  if ((of_w || of_end) && threadIdx.y == 0) w[tap * CO + (transposed ? i % C * O + i / C : i)] = sum;
}
