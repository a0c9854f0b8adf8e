"""How both command lines report errors: one sentence, without a traceback."""

from typing import Any

import click

from service.errors import YoloBatchError

_OF_DEVELOPERS = ("bench", "chaos", "demo", "up")


class Commands(click.Group):
    """A group of commands that reports our own errors as one sentence."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as exc:
            raise click.ClickException(f"{exc}: install yolo-batch with its extras") from exc
        except BrokenPipeError:  # nobody reads on, as behind `| head`: click ends quietly
            raise
        except (YoloBatchError, OSError) as exc:
            raise click.ClickException(str(exc)) from exc

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a command; name the other command line where the command is there.

        Raises:
            click.UsageError: there is no such command.
        """
        if args and args[0] in _OF_DEVELOPERS and self.get_command(ctx, args[0]) is None:
            ctx.fail(
                f"`{args[0]}` is a developer's command: run `yolo-batch-dev {args[0]}` "
                "from a checkout of yolo-batch."
            )
        return super().resolve_command(ctx, args)
