"""PDFs for tests, written here: pages of one colour, and files that cannot be read."""

import io

from PIL import Image

GREYS = (0, 60, 120, 180, 240)


def pdf(num_pages: int, width: int = 200, height: int = 100, lines: int = 0) -> bytes:
    """A PDF whose page N is of grey GREYS[N - 1], so many points wide and high, with so many lines of bars."""
    pages = [Image.new("L", (width, height), GREYS[i % len(GREYS)]) for i in range(num_pages)]
    for page in pages:
        for line in range(lines):
            page.paste(255 if page.getpixel((0, 0)) < 128 else 0, (10, 10 + 30 * line, width // 2, 25 + 30 * line))
    first, *others = pages
    file = io.BytesIO()
    first.save(file, "PDF", resolution=72, save_all=True, append_images=others)
    return file.getvalue()


def encrypted_pdf() -> bytes:
    """A PDF that asks for a password which nobody knows."""
    secret = "<" + "5A" * 32 + ">"
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        "<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 200 100] >>",
        f"<< /Filter /Standard /V 1 /R 2 /O {secret} /U {secret} /P -4 >>",
    ]
    body, offsets = "%PDF-1.4\n", []
    for number, text in enumerate(objects, start=1):
        offsets.append(len(body))
        body += f"{number} 0 obj\n{text}\nendobj\n"
    table = "".join(f"{offset:010d} 00000 n \n" for offset in offsets)
    trailer = f"trailer\n<< /Size 5 /Root 1 0 R /Encrypt 4 0 R /ID [<00><00>] >>\nstartxref\n{len(body)}\n%%EOF\n"
    return f"{body}xref\n0 5\n0000000000 65535 f \n{table}{trailer}".encode()
