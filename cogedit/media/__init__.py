"""Video file <-> uint8 frames: probe, clip selection, readers, writer, sound.

Importing this package loads neither torch nor decord: a command that finds its work already done
probes the video and ends before either is needed.
"""
