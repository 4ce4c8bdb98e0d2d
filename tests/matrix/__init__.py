"""The fault matrix: every command, on every faulty volume, while the machine fails around it.

    PYTHONPATH=tests python -m matrix [--sweep pairs|machine|triples] [--only WORD]... [--seed 1]

A cell is a command as a process of its own, a volume of the demo's, and a fault of the machine:
what the kernel gives is real (read-only and full file systems, limits, modes, signals, the OOM
killer); what it cannot be asked for (the nth write fails, a clock that jumps) comes from `shim.c`.
After each cell a list of complaints is made, empty if all is as promised: the exit code, what the
command says, the live data byte for byte, the earlier backups and copies, what is left behind.
"""
