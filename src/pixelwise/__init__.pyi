from . import models as models
from .api import Run as Run
from .api import doctor as doctor
from .api import load as load
from .api import train as train
from .prediction.predictor import predict as predict

__version__: str
