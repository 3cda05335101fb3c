"""Speech to speech as a chain of streams; `make voice` runs it.

tones.py   a language of tones, which a computer can speak and hear; plain NumPy
app.py     the Serve application: Recogniser -> Translator -> Synthesiser, a chain of streams
run.py     makes a WAV, plays it into the chain like a microphone, listens to what comes out
"""
