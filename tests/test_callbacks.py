import signal
from types import SimpleNamespace

import pytest
import torch

from gpt.callbacks import GracefulStop, Samples, Throughput
from gpt.settings import UserError


def test_throughput_against_a_clock_of_our_own():
    now = [100.0]
    throughput, logged = Throughput(clock=lambda: now[0]), []
    trainer = SimpleNamespace(world_size=2, log_every_n_steps=2, accumulate_grad_batches=1)
    trainer.datamodule = SimpleNamespace(characters_per_id=1.0)
    module = SimpleNamespace(log=lambda name, value, prog_bar: logged.append((name, value)))
    batch = (torch.zeros(3, 5), None)
    throughput.on_train_start(trainer, module)
    now[0] += 1000  # until the first batch
    for step in range(4):
        throughput.on_train_batch_start(trainer, module, batch, step)
        now[0] += 0.5
        throughput.on_train_batch_end(trainer, module, None, batch, step)
        if step == 2:
            throughput.on_validation_start(trainer, module)
            now[0] += 1000  # is not counted
            now[0] += 1000  # nor is what hangs on the validation
    assert logged == [("perf/chars_per_second", 60.0), ("perf/chars_per_second", 60.0)]  # 2 x 15 characters in half a second
    assert (throughput.characters, throughput.seconds) == (120, 2.0)


def test_samples_settings_are_checked():
    with pytest.raises(UserError, match="temperature"):
        Samples(prompt="", tokens=5, temperatures=[-1.0])


def test_a_signal_that_comes_while_processes_agree_is_not_lost(tmp_path):
    stop = GracefulStop(tmp_path / "last.ckpt", "")
    now = [0, signal.SIGTERM]  # which another process would have had

    def reduce(noted: torch.Tensor, reduce_op: str) -> torch.Tensor:
        stop.signal = stop.signal or signal.SIGUSR1
        return torch.tensor(now.pop(0))

    strategy = SimpleNamespace(reduce=reduce)
    trainer = SimpleNamespace(world_size=2, global_step=1, max_steps=9, val_check_batch=1, strategy=strategy)
    module = SimpleNamespace(device="cpu")
    stop.on_train_batch_end(trainer, module, None, None, 0)
    assert (stop.signal, stop.stopping) == (signal.SIGUSR1, False)
    trainer.global_step = 2
    stop.on_train_batch_end(trainer, module, None, None, 1)
    assert (stop.signal, stop.stopping) == (signal.SIGTERM, True)
