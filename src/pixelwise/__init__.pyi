from . import models as models
from .api import Run as Run
from .api import load as load
from .api import train as train
from .health import doctor as doctor
from .prediction.predictor import predict as predict

__version__: str
