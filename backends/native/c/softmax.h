/* The exponential of a softmax on 16 lanes: e^x for x from -inf to 44, of which a relative error of 3e-7 is left.

x = n ln 2 + r with whole n and |r| <= ln 2 / 2 (Cody and Waite: ln 2 in two parts, of which n times the first is exact),
and e^r = 1 + r + r^2 P(r) with P of degree 3, fitted for the least relative error, 1.1e-7. Below -104 it is 0. NaN stays. */

INLINE floats exp_of(floats x) {
    x = larger(set_floats(-120.0f), x);
    const floats n = nearest(mul(x, set_floats(0x1.715476p+0f)));
    floats r = fma_(n, set_floats(-0x1.63p-1f), x);
    r = fma_(n, set_floats(0x1.bd0106p-13f), r);
    floats p = fma_(set_floats(0x1.10625p-7f), r, set_floats(0x1.572a64p-5f));
    p = fma_(p, r, set_floats(0x1.5557bp-3f));
    p = fma_(p, r, set_floats(0x1.fffdfcp-2f));
    p = fma_(mul(r, r), p, r);
    return times_power(add(p, set_floats(1.0f)), n);
}

/* tanh x, of which an absolute error of 3e-7 is left */
INLINE floats tanh_of(floats x) {
    x = smaller(set_floats(20.0f), larger(set_floats(-20.0f), x));
    const floats e = exp_of(add(x, x)), one = set_floats(1.0f);
    return divide(subtract(e, one), add(e, one));
}
