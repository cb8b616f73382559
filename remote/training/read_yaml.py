"""Print a YAML file as JSON: the one part of train.py that runs in the training's Python, for its PyYAML.

    python read_yaml.py FILE

Exit codes: 2 the file is not YAML, with the reason on stderr; 3 there is no PyYAML.
"""

import json
import sys
from pathlib import Path


def main() -> int:
    """Read, print."""
    try:
        import yaml
    except ImportError:
        return 3
    try:
        loaded = yaml.safe_load(Path(sys.argv[1]).read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 2
    print(json.dumps(loaded, default=str))
    return 0


if __name__ == "__main__":
    sys.exit(main())
