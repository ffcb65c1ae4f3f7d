"""The bundled model: how its checkpoint is built, trained and scored, and its pictures."""
