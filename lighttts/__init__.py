"""LightTTS: CosyVoice2/CosyVoice3 speech synthesis served as ZeroMQ daemons."""

__version__ = "0.1.0"
