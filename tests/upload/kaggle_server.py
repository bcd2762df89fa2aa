"""A small Kaggle on 127.0.0.1 for the real client: data sets with versions, blobs that resume, kernels; it can fail."""

import io
import json
import threading
import zipfile
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SECRET = "KGAT_0123456789abcdef0123456789abcdef"


@dataclass
class Kaggle:
    """The state of the server, and the faults it is told to show.

    faults: how often each still happens: forbidden (403 on every blob), busy (503 on a blob), broken (the connection
    drops within a blob), slow_down (429 on a call), in_use, vanish (a file of the new version is not there).
    """

    versions: dict[str, list[dict[str, int]]] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    faults: dict[str, int] = field(default_factory=dict)
    calls: list[tuple[str, dict]] = field(default_factory=list)
    puts: list[tuple[str, str]] = field(default_factory=list)
    attached: list[str] = field(default_factory=lambda: ["the-competition"])
    kernel_states: list[str] = field(default_factory=lambda: ["RUNNING", "COMPLETE"])

    def fault(self, name: str) -> bool:
        left = self.faults.get(name, 0)
        self.faults[name] = left - 1
        return left > 0

    def files_of(self, tokens: list[dict]) -> dict[str, int]:
        """Zips are unpacked into a folder of their name."""
        out = {}
        for entry in tokens:
            name, content = self.names[entry["token"]], self.blobs[entry["token"]]
            if name.endswith(".zip"):
                with zipfile.ZipFile(io.BytesIO(content)) as archive:
                    out |= {f"{name[:-4]}/{info.filename}": info.file_size for info in archive.infolist()}
            else:
                out[name] = len(content)
        if self.fault("vanish"):
            out.pop(sorted(out)[0])
        return out


def answer(state: Kaggle, method: str, body: dict, base: str) -> tuple[int, dict]:
    """Status and JSON of one call."""
    reference = f"{body.get('ownerSlug')}/{body.get('datasetSlug')}"
    if state.fault("slow_down"):
        return 429, {"message": "too many requests"}
    match method:
        case "StartBlobUpload":
            token = f"token{len(state.names)}"
            state.names[token], state.lengths[token] = body["name"], body.get("contentLength", 0)
            state.blobs[token] = b""
            return 200, {"token": token, "createUrl": f"{base}/blob/{token}?upload_id=SECRETUPLOAD"}
        case "CreateDataset":
            reference = f"{body['ownerSlug']}/{body['slug']}"
            if state.fault("in_use"):
                return 200, {"status": "error", "error": "The requested title is already in use by a dataset."}
            state.versions[reference] = [state.files_of(body["files"])]
            return 200, {"status": "ok", "ref": reference, "url": f"{base}/{reference}", "error": ""}
        case "CreateDatasetVersion":
            state.versions[reference].append(state.files_of(body["body"]["files"]))
            return 200, {"status": "ok", "ref": reference, "url": f"{base}/{reference}"}
        case "GetDatasetStatus":
            if reference not in state.versions:
                return 404, {"message": "not found"}
            if len(state.versions[reference]) and state.fault("processing"):
                return 200, {"status": "BLOBS_RECEIVED"}
            return 200, {"status": "READY"}
        case "GetDataset":
            return 200, {"currentVersionNumber": len(state.versions[reference])}
        case "ListDatasetFiles":
            files = sorted(state.versions[reference][-1].items())
            start = int(body.get("pageToken") or 0)
            page = files[start : start + 7]
            more = str(start + 7) if start + 7 < len(files) else ""
            return 200, {
                "datasetFiles": [{"name": name, "totalBytes": size} for name, size in page],
                "nextPageToken": more,
            }
        case "SaveKernel":
            wrong = [s for s in body.get("datasetDataSources", []) if s not in state.versions]
            return 200, {"ref": body["slug"], "versionNumber": 3, "invalidDatasetSources": wrong}
        case "GetKernel":
            return 200, {"metadata": {"currentVersionNumber": 3, "competitionDataSources": state.attached}, "blob": {}}
        case "GetKernelSessionStatus":
            if state.fault("kernel_busy"):
                return 503, {"message": "busy"}
            status = state.kernel_states.pop(0) if len(state.kernel_states) > 1 else state.kernel_states[0]
            return 200, {"status": status}
        case "ListKernelSessionOutput":
            log = [{"stream_name": "stderr", "data": "first line\n"}, {"stream_name": "stderr", "data": "last line\n"}]
            return 200, {"log": json.dumps(log), "files": []}
        case "CreateCodeSubmission":
            return 200, {"message": "Successfully submitted"}
    return 404, {"message": f"no {method}"}


def serve(state: Kaggle) -> ThreadingHTTPServer:
    """Starts the server on a free port."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments):
            pass

        def send(self, status, content=b"", **headers):
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def read(self):
            if self.headers.get("Transfer-Encoding") == "chunked":
                content = b""
                while size := int(self.rfile.readline(), 16):
                    content += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return content
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def do_POST(self):
            method = self.path.rsplit("/", 1)[1]
            body = json.loads(self.read() or b"{}")
            state.calls.append((method, body))
            base = f"http://127.0.0.1:{self.server.server_port}"
            status, content = answer(state, method, body, base)
            self.send(status, json.dumps(content).encode(), Content_Type="application/json")

        def do_PUT(self):
            token = self.path.split("/blob/")[1].split("?")[0]
            where = self.headers.get("Content-Range", "")
            state.puts.append((state.names[token], where))
            if where.startswith("bytes */"):
                if state.fault("stale"):
                    return self.send(410)
                have = len(state.blobs[token])
                if have >= state.lengths[token]:
                    return self.send(200)
                return self.send(308, **({"Range": f"bytes=0-{have - 1}"} if have else {}))
            if state.fault("forbidden"):
                self.read()
                return self.send(403)
            if state.fault("busy"):
                state.blobs[token] += self.rfile.read(int(self.headers["Content-Length"]) // 2)
                self.close_connection = True
                return self.send(503)
            if state.fault("broken"):
                state.blobs[token] += self.rfile.read(int(self.headers["Content-Length"]) // 2)
                self.close_connection = True
                self.connection.close()
                return None
            start = int(where.split()[1].split("-")[0]) if where else 0
            state.blobs[token] = state.blobs[token][:start] + self.read()
            return self.send(200)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server
