"""The whole system on one machine: emulators, a stand-in for Eventarc, and the service."""
