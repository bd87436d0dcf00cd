#!/usr/bin/env bash
# List the images of a folder that show an X-ray of a labelled data set, for DATA.LEAVE_OUT:
#   bash scripts/leave_out.sh LABELLED IMAGES OUT TABLE [TABLE]
# LABELLED: CheXpert's layout; IMAGES: images for pre-training; both may be packed stores. TABLE: CSV
# files in LABELLED whose images are scored. Writes OUT/duplicates.csv and OUT/leave_out.csv.
# It finds copies, also in another size, format (JPEG, DICOM) or contrast,
# equalised or inverted. It does not find most crops of 5 % or more, nor mirrored, rotated or locally
# equalised (CLAHE) images, nor other X-rays of the same patients.
set -euo pipefail
. "$(dirname "$0")/help.sh"
labelled=$(realpath "$1") images=$(realpath "$2") out=$3
python=${PYTHON:-python}
sources="[{'name': 'labelled', 'dataset': 'chexpert', 'path': '$labelled'},
    {'name': 'images', 'dataset': 'folder', 'path': '$images'}]"
# Exit code 1: the check found errors, which it has listed.
"$python" "$(dirname "$0")/check_data.py" --data-path / --output "$out/duplicates_check.csv" \
    --duplicates "$out/duplicates.csv" \
    --opts DATA.SOURCES "$sources" DATA.TRAIN_CSV "$4" DATA.VALID_CSV "${5:-none}" || [ $? -eq 1 ]
sed -n '1p; s#^images/##p' "$out/duplicates.csv" >"$out/leave_out.csv"
count=$(($(wc -l <"$out/leave_out.csv") - 1))
if [ "$count" -gt 0 ]; then
    echo "warning: $count images of $images show X-rays that are scored. Pre-training leaves them out (list: $out/leave_out.csv)."
else
    echo "no image of $images was found to show an X-ray that is scored"
fi
echo 'Found are copies, also in another size, format or contrast, equalised or inverted; not most crops of 5 % or more,' \
    'mirrored or rotated images, local equalisation (CLAHE), or other X-rays of the same patients.'
