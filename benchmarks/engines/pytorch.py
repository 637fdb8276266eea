"""PyTorch."""

import numpy as np

from benchmarks.engines.base import THREADS, Engine, as_time_major, swap_gates


class PyTorch(Engine):
    """nn.GRU, time major (its native layout), with one and with all threads."""

    packages = ("torch",)
    threads = 0

    def module(self, data):
        """Return the module, its parameters in Keras' order and their new values."""
        import torch

        features, units = data.x.shape[2], data.dy.shape[2]
        dtype = getattr(torch, data.x.dtype.name)
        module = torch.nn.GRU(features, units, dtype=dtype)
        parameters = [
            module.weight_ih_l0,
            module.weight_hh_l0,
            module.bias_ih_l0,
            module.bias_hh_l0,
        ]
        kernel, recurrent_kernel, bias = data.weights
        values = [swap_gates(a.T, 0) for a in (kernel, recurrent_kernel)]
        values = [torch.from_numpy(v) for v in (*values, *swap_gates(bias, 1))]
        with torch.no_grad():
            for parameter, value in zip(parameters, values, strict=True):
                parameter.copy_(value)
        return module, parameters, values

    def settings(self, step):
        """Return the step bound to numbers of threads."""
        import torch

        def setting(threads):
            def bound():
                if self.threads != threads:
                    torch.set_num_threads(threads)
                    self.threads = threads
                return step()

            return bound

        return {f"{n} threads": setting(n) for n in {1, THREADS}}

    def keras_layout(self, results):
        """Undo the time major layout and PyTorch's order of gates."""
        sequences, weights = results[:2], results[2:]
        if weights:
            kernel, recurrent_kernel, *biases = weights
            weights = [kernel.T, recurrent_kernel.T, np.stack(biases)]
        swapped = [swap_gates(w, 1) for w in weights]
        return *(a.swapaxes(0, 1) for a in sequences), *swapped

    def inference(self, data):
        """Call under inference_mode."""
        import torch

        module, _, _ = self.module(data)
        x = as_time_major(data.x)

        @torch.inference_mode()
        def step():
            y, _ = module(torch.from_numpy(x))
            return (y.numpy(),)

        return self.settings(step)

    def training(self, data):
        """Copy weights in, call, differentiate."""
        import torch

        module, parameters, values = self.module(data)
        x, dy = as_time_major(data.x), torch.from_numpy(as_time_major(data.dy))

        def step():
            with torch.no_grad():
                for parameter, value in zip(parameters, values, strict=True):
                    parameter.copy_(value)
            inputs = torch.from_numpy(x).requires_grad_()
            y, _ = module(inputs)
            gradients = torch.autograd.grad(y, [inputs, *parameters], dy)
            return [y.detach().numpy(), *(g.numpy() for g in gradients)]

        return self.settings(step)
