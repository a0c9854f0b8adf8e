"""The whole system on one machine: Google's emulators, a fake Eventarc, and the service."""
