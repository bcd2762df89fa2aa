"""Upload: data set, notebook, submission. The only package that talks to Kaggle."""

from fb3.upload.dataset import check_limits, upload_bundle
from fb3.upload.kernel import kernel_metadata, log_tail, push_notebook, submit_notebook

__all__ = ["check_limits", "kernel_metadata", "log_tail", "push_notebook", "submit_notebook", "upload_bundle"]
