"""Many schedules of one protocol: does it hold in every order that hardware, fabric and memory allow?

    explore("put-signal").report()                 # our own protocols, by name
    explore("my_protocol.py:ring", schedules=5000) # yours: a function that sets a scene
    replay("put-signal", seed=1234)                # the story of one schedule

Leans on emu; `scenarios` on signal and ep.
"""

from rdmakit.explore.explorer import Explored, Explorer, Failure, Search, explore, replay
from rdmakit.explore.scenario import Scenario, Scene, find_scenario, scenario

# `scenarios` is the package of our own; under that name the function would last until that is imported.
from rdmakit.explore.scenario import scenarios as known_scenarios
from rdmakit.explore.schedule_file import SavedSchedule, load_schedule, save_schedule
from rdmakit.explore.story import Story

__all__ = [
    "Explored",
    "Explorer",
    "Failure",
    "SavedSchedule",
    "Scenario",
    "Scene",
    "Search",
    "Story",
    "explore",
    "find_scenario",
    "known_scenarios",
    "load_schedule",
    "replay",
    "save_schedule",
    "scenario",
]
