/* Functions of 16 numbers on the vocabulary of vectors: exp, log, erf, tanh, sigmoid and what is made of them.

Errors against exact values, on a sample of all of float32 (tests/backends/test_native_rows.py):
    exp, log     relative 1.5e-7
    erf          relative 1.5e-7, absolute 1.2e-7
    tanh         relative 2e-7, absolute 1.2e-7
    sigmoid      relative 3e-7; below the least normal number, to which x < -87.3 goes, absolute 4e-39
    gelu         absolute 1e-7 |x| and a rounding: for x < -1 it is a difference of numbers that are nearly the same
Infinities give limits, but gelu and silu of -inf, which as formulas are -inf times 0, give NaN; so does NaN. Numbers below
the least normal one are numbers as any.

exp and log are reduced as Cody and Waite do (Software Manual for the Elementary Functions, 1980): x = n log 2 + r, with
log 2 in two parts, so that n times the first is exact. Every polynomial is a minimax fit of our own, by Lawson's
reweighted least squares on 2000 Chebyshev nodes in float64; what is rounded to float32 is the fit. */

INLINE floats load_lanes(const float *p, int count) { return count >= 16 ? load_f32(p) : load_some(p, count); }
INLINE floats min_of(floats a, floats b) { return unless_nan(a, min_floats(a, b)); }
INLINE floats max_of(floats a, floats b) { return unless_nan(a, max_floats(a, b)); }
INLINE floats relu(floats x) { return max_floats(zero_floats(), x); }

/* c[0] + c[1] x + ..., by Horner's rule */
#define POLYNOMIAL(x, ...) ({ \
    static const float c_[] = {__VA_ARGS__}; \
    const int n_ = (int)(sizeof c_ / sizeof *c_); \
    floats p_ = set_floats(c_[n_ - 1]); \
    _Pragma("GCC unroll 16") for (int i_ = n_ - 2; i_ >= 0; i_--) p_ = fma_(p_, (x), set_floats(c_[i_])); \
    p_; })

/* e^x = 2^n (1 + r + r^2 P(r)), |r| <= log(2) / 2. Beyond the ends of the clamp the result is 0, or infinite. */
INLINE floats exp_floats(floats x) {
    x = max_floats(set_floats(-104.0f), min_floats(set_floats(89.0f), x));
    const floats n = round_floats(mul(x, set_floats(0x1.715476p+0f)));
    floats r = fnma_(n, set_floats(0x1.62e4p-1f), x);
    r = fnma_(n, set_floats(0x1.7f7d1cp-20f), r);
    const floats p = POLYNOMIAL(r, 0.4999999403953552f, 0.1666652113199234f, 0.04166838899254799f, 0.008368716575205326f,
                                0.001381459878757596f);
    return scale_by_power(fma_(mul(r, r), p, add(r, set_floats(1.0f))), n);
}

/* log x = n log 2 + log m, log(1 + r) = r - r^2/2 + r^3 P(r), m = 1 + r in [sqrt(1/2), sqrt(2)) */
INLINE floats log_floats(floats x) {
    const floats least = set_floats(0x1p-126f), zero = zero_floats(), one = set_floats(1.0f);
    const floats v = select_less(x, least, mul(x, set_floats(0x1p23f)), x);
    floats n = sub(exponent_of(v), select_less(x, least, set_floats(23.0f), zero)), m = mantissa_of(v);
    const floats root = set_floats(0x1.6a09e6p+0f);
    n = select_less(root, m, add(n, one), n);
    m = select_less(root, m, mul(m, set_floats(0.5f)), m);
    const floats r = sub(m, one), square = mul(r, r);
    const floats p = POLYNOMIAL(r, 0.3333331346511841f, -0.25000008940696716f, 0.2000211924314499f, -0.1666799634695053f,
                                0.14219552278518677f, -0.1240558922290802f, 0.11888162791728973f, -0.11675651371479034f,
                                0.0674663856625557f);
    floats y = fma_(n, set_floats(0x1.7f7d1cp-20f), mul(mul(square, r), p));
    y = fnma_(square, set_floats(0.5f), y);
    y = fma_(n, set_floats(0x1.62e4p-1f), add(r, y));
    y = select_less(zero, x, y, set_floats(-__builtin_inff()));
    y = select_less(x, zero, set_floats(__builtin_nanf("")), y);
    return unless_nan(x, select_less(x, set_floats(__builtin_inff()), y, x));
}

/* x + x P(x^2) up to 1, then 1 - Q(|x| - 2)^4, which is 1 in float32 from 3.93 on */
INLINE floats erf_floats(floats x) {
    const floats size = min_floats(set_floats(3.93f), abs_floats(x)), one = set_floats(1.0f);
    const floats p = POLYNOMIAL(mul(x, x), 0.12837912142276764f, -0.37612318992614746f, 0.11280126869678497f,
                                -0.02670964226126671f, 0.004915442317724228f, -0.0005622180760838091f);
    floats q = POLYNOMIAL(sub(size, set_floats(2.0f)), 0.2615223228931427f, -0.2888616621494293f, 0.09913942962884903f,
                          0.006901479326188564f, -0.012249363586306572f, 0.001532366732135415f, 0.0007733826641924679f,
                          -0.00017836253391578794f, -2.2420965251512825e-05f);
    q = mul(q, q);
    return select_less(size, one, fma_(x, p, x), copy_sign(fnma_(q, q, one), x));
}

/* x + x^3 P(x^2) up to 0.6, then 1 - 2 / (e^(2 |x|) + 1) */
INLINE floats tanh_floats(floats x) {
    const floats size = abs_floats(x), one = set_floats(1.0f), square = mul(x, x);
    const floats p = POLYNOMIAL(square, -0.33333298563957214f, 0.13331924378871918f, -0.053783830255270004f,
                                0.020795973017811775f, -0.005895158741623163f);
    const floats e = exp_floats(add(size, size));
    const floats large = sub(one, divide(set_floats(2.0f), add(e, one)));
    return select_less(size, set_floats(0.6f), fma_(mul(x, square), p, x), copy_sign(large, x));
}

INLINE floats sigmoid(floats x) {
    const floats one = set_floats(1.0f);
    return divide(one, add(one, exp_floats(negate(x))));
}
INLINE floats silu(floats x) { return divide(x, add(set_floats(1.0f), exp_floats(negate(x)))); }
/* x (1 + erf(x / sqrt 2)) / 2 */
INLINE floats gelu(floats x) {
    const floats half = mul(x, set_floats(0.5f));
    return fma_(half, erf_floats(mul(x, set_floats(0x1.6a09e6p-1f))), half);
}
/* x (1 + tanh t) / 2 = x sigmoid(2 t), t = sqrt(2 / pi) (x + 0.044715 x^3) */
INLINE floats gelu_tanh(floats x) {
    const floats inner = fma_(mul(x, x), set_floats(-0x1.2444f2p-4f), set_floats(-0x1.988454p+0f));
    return divide(x, add(set_floats(1.0f), exp_floats(mul(x, inner))));
}
