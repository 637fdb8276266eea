"""What a fresh process waits for: the import, and the first call with a warm cache."""

import subprocess
import sys

FIRST_CALL = """
import numpy, numbagru
numbagru.GRU(32, return_sequences=True)(numpy.ones((4, 10, 3), "float32"))
"""


class Start:
    number = 1

    def timeraw_import_numba(self):
        return "import numba"

    def timeraw_import(self):
        return "import numbagru"


class FirstCall:
    number = 1

    def setup(self):
        subprocess.run([sys.executable, "-c", FIRST_CALL], check=True)

    def timeraw_first_call(self):
        return FIRST_CALL
