"""The project's own protocols as scenarios; each module registers some. Leans on explore.scenario, signal, ep."""
