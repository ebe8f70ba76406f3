"""Imported first by a program: Ctrl-C ends its slow imports at once, without a traceback.

utils.cli.one_sentence turns Ctrl-C into an exception again.
"""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)
