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

// w[i] = factor (u[i] + u[i + 1]) on each axis: u (4, 4, C, O), or transposed: turned and (4, 4, O, C), -> (3, 3, C, O).
// There are `count` of them, and a row follows each: that after w is the one after u, or 0 where u is transposed.
extern "C" __global__ void unsmear(const real* u, real* w, real factor, int count, int C, int O, int transposed) {
  int CO = C * O, all = 9 * CO + O, one = THREAD / all, i = THREAD % all, tap = i / CO, c = i % CO / O, o = i % O;
  if (one >= count) return;
  u += size_t(one) * (16 * CO + (transposed ? C : O));
  if (tap == 9) {
    w[THREAD] = transposed ? real(0) : u[16 * CO + o];
    return;
  }
  u += transposed ? o * C + c : c * O + o;
  real sum = 0;
  for (int k = 0; k < 4; k++) {
    int at = (tap / 3 + k / 2) * 4 + tap % 3 + k % 2;
    sum += u[(transposed ? 15 - at : at) * CO];
  }
  w[THREAD] = factor * sum;
}
