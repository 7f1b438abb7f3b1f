"""MQTT brokers for meshes: mosquitto where it is installed, else one in pure Python; configured, started and ended."""

__all__: list[str] = []
