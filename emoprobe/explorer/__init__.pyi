from .launch import Explorer as Explorer
from .launch import explore as explore
