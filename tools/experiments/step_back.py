"""Forget a last epoch whose validation was cut: it would not be made up."""
import sys
from pathlib import Path

from wsld_plugin.analysis import read_history

last = Path(sys.argv[1])
if last.exists() and int(last.stem[6:]) not in read_history(
        last.parent).validations:
    *older, _ = sorted(last.parent.glob('epoch_*[0-9].pth'),
                       key=lambda path: int(path.stem[6:]))
    pointer = last.with_name('last_checkpoint')
    if older:
        pointer.write_text(str(older[-1]))
    else:
        pointer.unlink(missing_ok=True)
    last.unlink()
