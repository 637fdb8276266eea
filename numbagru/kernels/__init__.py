"""What a machine runs: arrays, no Keras.

Letters: B rows, T steps, F features, U units.

Arrays of the forward kernels
    x        (B, T, F)    any strides of row and time, features contiguous
    h0       (B, U)       state before the first step; for zeros also (0, U), where the
                          register tiles train
    mask     (B, T)       uint8, 0 skips the step; (0, 0) when every step counts
    y        (B, T, U)    out, any strides, units contiguous; (0, 0, 0) when not wanted
    last     (B, U)       out: the last output
    state    (B, U)       out: the state after the last step
    saved    (B, T, 4, V) out, for backward: z, r, candidate and either the candidate's
                          recurrent part or r * h; (0, 0, 0, 0) when not wanted. Gates
                          whose derivative is written in the input are saved as sums.
    states   (B, T, V)    out, for backward: the state after each step
    x_drop   (3, B, F)    multipliers of x per gate; (0, 0, 0) for none
    h_drop   (3, B, U)    multipliers of the state in each gate's product
    V is U, or U padded to whole vectors in the register-tile kernels, which also save
    rows by their last active step, latest first (call.rows_by_end), and each row in one
    piece, (B, 1, 1, any) and (B, 1, any): of a step four gates of one vector after the
    other.

Arrays of the backward kernels
    d_y, d_last, d_state  gradients of the outputs, shapes as above, (0, ...) for none
    d_x (B, T, F), d_h0 (B, U)  out; d_h0 counts only where h0 was given
    d_W (F, 3, U), d_R (U, 3, U), d_bias (4, U)  out: sums of parts over `rows_per_part`
                          rows each, added in order. d_bias is z, r, candidate's input
                          and recurrent part.

Weights: W (F, 3 U), R (U, 3 U), gates z, r, candidate; bias (4, U): z and r with both
biases added, the candidate's input bias and its recurrent bias. All arrays belong to
the caller; kernels keep nothing. A masked step is computed nowhere into a result: the
state stays, the output repeats (or is zero), the gradient passes through.

Order of sums, for each output element: the bias, then one chain of fused multiply-adds
over features 0..F-1, then units 0..U-1; the candidate's recurrent part with the reset
gate after the product is a chain of its own from its own bias. Never split, never
reassociated. The gradient of a state adds a chain over the units for each gate, of z,
of r and of the candidate; one chain for all would keep a GPU waiting three times as
long (cuda/backward_rows.py), and a row alone on the CPU. That of an input is one chain
over the units of the candidate, of z and of r; with dropout per gate one each. Weight
gradients are partial sums over fixed blocks of rows, each from the last step to the
first, added in the order of the blocks. An activation that takes all units of a row
adds them as folds.py says. So no result depends on the rows around it, on threads, on
chunks of time or on the vector width.

Where things are
    vector_ir, simd, atomics  what Numba lacks: vectors, addresses, words of threads,
    variant, record           bodies by type, tuples handed on by address
    register_tiles            sums that stay in registers
    tiles, panels             tiles of any number of rows, and weights packed for them
    team, threads             several threads in a kernel, and where they come from
    ways                      which way to divide a call turns out to be the fastest
    memory                    what one call after the other works with
    forward_*, backward_*     the register-tile kernels: *_cpu has the entries, *_rows,
                              *_parts and *_block the loops, *_step what a step does on
                              each *_tile, *_products and *_chunk what is multiplied
                              on the way back; for activations that need all units,
                              forward_whole_rows
    one_step, one_step_*      training over one step of few rows, nothing packed
    weight_gradients          what backward adds up: parts of rows, and their sum
    plain_*                   plain loops for everything; plain_cpu has the entries
    cuda                      the same for NVIDIA GPUs
"""
