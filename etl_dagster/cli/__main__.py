"""``python -m etl_dagster.cli``: the command line where the script is not on the path."""

from etl_dagster.cli.app import main

if __name__ == "__main__":
    main()
