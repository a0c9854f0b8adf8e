"""The whole system on one machine: emulators, our own of Eventarc among them, and the service."""
