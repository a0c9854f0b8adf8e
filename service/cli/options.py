"""Options that several commands have."""

import click

topic_option = click.option(
    "--topic",
    default="jobs",
    show_default=True,
    help="Topic's name, or projects/PROJECT/topics/NAME.",
)
