"""The loop, whatever is being fitted: workflows, chains, the ledger and the driver."""
