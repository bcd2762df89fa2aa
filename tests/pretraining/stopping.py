"""A pretraining that is asked to stop, as by a signal."""

from fb3.training.loop import Loop


def stop_after(monkeypatch, number):
    """Lets the loop take so many optimizer steps, until `monkeypatch.undo()`."""
    steps = []

    def step_and_stop(loop, *arguments, step=Loop.optimizer_step):
        step(loop, *arguments)
        steps.append(loop.step.number)
        if len(steps) == number:
            loop.hooks.after_step.__self__.session.stop.signal = "SIGTERM"

    monkeypatch.setattr(Loop, "optimizer_step", step_and_stop)
