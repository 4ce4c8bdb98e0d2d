"""Operations runbook for NescordBot: proves that the data on its Railway volume is safe.

A notebook cell or a command calls one function of a capability module and shows its result:
`verify.run`, `capacity.run`, `cost.run`, `troubleshoot.run`, `report.run`, `demo.create`.
"""

__all__ = ["__version__"]

__version__ = "0.1.0"
