"""The command `flakefs`. Each command is imported when it is called, so that --help answers at once."""


def main() -> None:
    """Run the command line and leave with its status: 0 done, 1 failed or problems found, 2 usage or configuration."""
    from flakefs.cli.root import end_on_signals, root

    end_on_signals()
    root.main(prog_name="flakefs")
